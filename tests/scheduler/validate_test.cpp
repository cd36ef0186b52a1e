#include "scheduler/validate.h"

#include <cmath>
#include <limits>
#include <string>

#include <catch2/catch.hpp>

namespace dsa {
namespace {

constexpr std::int64_t kVocabulary = 100;

Request Good() {
  Request request;
  request.prompt = {TokenId{0}, TokenId{99}};
  request.stop.max_tokens = 1;
  return request;
}

TEST_CASE("Sampling parameters are accepted at their borders and refused beyond", "[validate]") {
  const float nan = std::numeric_limits<float>::quiet_NaN();
  const float infinity = std::numeric_limits<float>::infinity();
  const auto check = [](auto&& change) {
    SamplingParams params;
    change(params);
    return Validate(params, kVocabulary).ok();
  };
  for (const float good : {0.0F, 0.7F, 2.0F}) {
    CHECK(check([&](SamplingParams& p) { p.temperature = good; }));
  }
  for (const float bad : {-0.001F, 2.001F, nan, infinity, -infinity}) {
    CHECK_FALSE(check([&](SamplingParams& p) { p.temperature = bad; }));
  }
  for (const float good : {1e-6F, 1.0F}) {
    CHECK(check([&](SamplingParams& p) { p.top_p = good; }));
  }
  for (const float bad : {0.0F, -1.0F, 1.001F, nan}) {
    CHECK_FALSE(check([&](SamplingParams& p) { p.top_p = bad; }));
  }
  for (const float good : {0.0F, 1.0F}) {
    CHECK(check([&](SamplingParams& p) { p.min_p = good; }));
  }
  for (const float bad : {-0.001F, 1.001F, nan}) {
    CHECK_FALSE(check([&](SamplingParams& p) { p.min_p = bad; }));
  }
  for (const std::int32_t good : {0, 1, 100}) {
    CHECK(check([&](SamplingParams& p) { p.top_k = good; }));
  }
  for (const std::int32_t bad : {-1, 101}) {
    CHECK_FALSE(check([&](SamplingParams& p) { p.top_k = bad; }));
  }
  for (const std::int32_t good : {0, 20}) {
    CHECK(check([&](SamplingParams& p) { p.top_logprobs = good; }));
  }
  for (const float good : {-2.0F, 0.0F, 2.0F}) {
    CHECK(check([&](SamplingParams& p) { p.frequency_penalty = good; }));
    CHECK(check([&](SamplingParams& p) { p.presence_penalty = good; }));
  }
  for (const float bad : {-2.001F, 2.001F, nan}) {
    CHECK_FALSE(check([&](SamplingParams& p) { p.frequency_penalty = bad; }));
    CHECK_FALSE(check([&](SamplingParams& p) { p.presence_penalty = bad; }));
  }
  for (const float good : {1e-6F, 1.0F, 10.0F}) {
    CHECK(check([&](SamplingParams& p) { p.repetition_penalty = good; }));
  }
  for (const float bad : {0.0F, -1.0F, 10.01F, nan}) {
    CHECK_FALSE(check([&](SamplingParams& p) { p.repetition_penalty = bad; }));
  }
  using Biases = std::vector<LogitBias>;
  for (const Biases& good : {Biases{}, Biases{{TokenId{0}, -100.0F}, {TokenId{99}, 100.0F}}}) {
    CHECK(check([&](SamplingParams& p) { p.logit_bias = good; }));
  }
  for (const Biases& bad : {Biases{{TokenId{100}, 1.0F}}, Biases{{TokenId{-1}, 1.0F}},
                            Biases{{TokenId{1}, 100.1F}}, Biases{{TokenId{1}, nan}},
                            Biases{{TokenId{1}, 1.0F}, {TokenId{5}, 1.0F}, {TokenId{1}, 1.0F}}}) {
    CHECK_FALSE(check([&](SamplingParams& p) { p.logit_bias = bad; }));
  }
  for (const std::int32_t bad : {-1, 21}) {
    CHECK_FALSE(check([&](SamplingParams& p) { p.top_logprobs = bad; }));
  }
}

TEST_CASE("A request biases as many ids as it may, and not one more", "[validate]") {
  SamplingParams sampling;
  for (std::int32_t id = 0; id < 1024; ++id) {
    sampling.logit_bias.push_back({.id = TokenId{id}, .add = 1.0F});
  }
  CHECK(Validate(sampling, 2000).ok());
  sampling.logit_bias.push_back({.id = TokenId{1024}, .add = 1.0F});
  CHECK(Validate(sampling, 2000).error().message == "logit_bias has 1025 ids, allowed are 1024");
}

TEST_CASE("Errors name the field, the value and what is allowed", "[validate]") {
  Request request = Good();
  request.sampling.temperature = -1.0F;
  CHECK(Validate(request, kVocabulary).error().message == "temperature is -1, allowed is 0 to 2");
  request = Good();
  request.prompt[1] = TokenId{100};
  CHECK(Validate(request, kVocabulary).error().message == "prompt[1] is 100, allowed is 0 to 99");
  request.prompt[1] = TokenId{-1};
  CHECK(Validate(request, kVocabulary).error().message == "prompt[1] is -1, allowed is 0 to 99");
  request = Good();
  request.prompt.clear();
  CHECK(Validate(request, kVocabulary).error().message ==
        "prompt has 0 tokens, it must have at least 1");
  request = Good();
  request.stop.max_tokens = -1;
  CHECK(Validate(request, kVocabulary).error().message ==
        "max_tokens is -1, it must be at least 0");
  request = Good();
  request.stop.min_tokens = 2;
  CHECK(Validate(request, kVocabulary).error().message ==
        "min_tokens is 2, allowed is 0 to max_tokens, 1");
  request = Good();
  request.stop.stop_ids = {TokenId{5}, TokenId{100}};
  CHECK(Validate(request, kVocabulary).error().message == "stop_ids[1] is 100, allowed is 0 to 99");
}

TEST_CASE("Stop strings and ids are bounded", "[validate]") {
  Request request = Good();
  request.stop.stop_strings.assign(16, std::string(128, 'x'));
  request.stop.stop_ids.assign(64, TokenId{1});
  CHECK(Validate(request, kVocabulary).ok());
  request.stop.stop_strings.emplace_back("x");
  CHECK(Validate(request, kVocabulary).error().message == "stop has 17 strings, allowed are 16");
  request.stop.stop_strings.assign(1, std::string(257, 'x'));
  CHECK(Validate(request, kVocabulary).error().message ==
        "stop[0] has 257 bytes, allowed are 1 to 256");
  request.stop.stop_strings.assign(1, "");
  CHECK(Validate(request, kVocabulary).error().message ==
        "stop[0] has 0 bytes, allowed are 1 to 256");
  request.stop.stop_strings.assign(9, std::string(256, 'x'));
  CHECK(Validate(request, kVocabulary).error().message ==
        "stop has 2304 bytes in all, allowed are 2048");
  request.stop.stop_strings.clear();
  request.stop.stop_ids.push_back(TokenId{1});
  CHECK(Validate(request, kVocabulary).error().message == "stop_ids has 65 ids, allowed are 64");
}

TEST_CASE("A request id is short and has no odd bytes", "[validate]") {
  Request request = Good();
  request.external_id = std::string(128, 'a');
  CHECK(Validate(request, kVocabulary).ok());
  request.external_id += 'a';
  CHECK(Validate(request, kVocabulary).error().message ==
        "request_id has 129 bytes, allowed are 128");
  request.external_id = "a\nb";
  CHECK(Validate(request, kVocabulary).error().message ==
        "request_id has byte 0x0A at offset 1, allowed are letters, digits, '.', '_' and '-'");
}

}  // namespace
}  // namespace dsa
