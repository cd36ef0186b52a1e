// What clients see of replies as models really write them: through the tokenizer, the engine and
// both chat calls, on a checkpoint that says what the test wants.
#include "tests/e2e/process.h"
#include "tests/e2e/scripted_model.h"
#include "tests/temporary_folder.h"

#include <csignal>
#include <optional>

#include <catch2/catch.hpp>

namespace dsa {
namespace {

using testing::Arguments;
using testing::Ended;
using testing::Process;
using testing::RunDsa;
using testing::Script;
using testing::Streams;
using testing::TemporaryFolder;

// What `dsa chat` prints, without times.
struct Reply {
  std::string content;
  std::string reasoning;  // and the calls behind it
  std::string counts;     // "7 answered (2 reasoning)"
  std::string finish;     // "STOP"

  bool operator==(const Reply&) const = default;
};

class Scripted final {
 public:
  explicit Scripted(const Script& script, const std::string& format = "v3.2") {
    testing::WriteScriptedModel(script, folder_.path());
    server_.emplace(
        Arguments{"serve", folder_.path(), "--listen", "127.0.0.1:0", "--threads", "1",
                  "--chat-format", format, "--log-format", "json", "--max-model-len", "1024"},
        Streams::kPipes);
    REQUIRE(server_->WaitForErr("\"configuration\""));
    const std::size_t at = server_->err().find("\"port\":") + 7;
    address_ = "127.0.0.1:" + std::to_string(std::stoi(server_->err().substr(at)));
  }
  ~Scripted() {
    server_->Signal(SIGTERM);
    server_->Wait();
  }
  Scripted(const Scripted&) = delete;
  Scripted& operator=(const Scripted&) = delete;

  // The same from the stream and from the whole answer.
  Reply Chat(const Arguments& more) const {
    Arguments arguments = {"chat", "--address", address_, "--temperature", "0"};
    arguments.insert(arguments.end(), more.begin(), more.end());
    arguments.emplace_back("hi");
    const Reply streamed = Read(RunDsa(arguments, ""));
    arguments.emplace_back("--whole");
    CHECK(Read(RunDsa(arguments, "")) == streamed);
    return streamed;
  }

  const std::string& address() const { return address_; }

 private:
  static Reply Read(const Ended& ended) {
    INFO(ended.err);
    CHECK(ended.exit_code == 0);
    Reply reply;
    reply.content = ended.out;
    if (reply.content.ends_with('\n')) {
      reply.content.pop_back();
    }
    const std::size_t usage = ended.err.rfind('[');
    REQUIRE(usage != std::string::npos);
    reply.reasoning = ended.err.substr(0, usage);
    const std::string line = ended.err.substr(usage);
    const std::size_t counts = line.find("), ") + 3;
    reply.counts = line.substr(counts, line.find(';') - counts);
    const std::size_t finish = line.find("tokens/s; ") + 10;
    reply.finish = line.substr(finish, line.find(';', finish) - finish);
    return reply;
  }

  TemporaryFolder folder_;
  std::optional<Process> server_;
  std::string address_;
};

}  // namespace

TEST_CASE("a call in a reply, a sentence before it, and stop strings beside them",
          "[e2e][replies]") {
  const Scripted scripted({
      .after_no_thinking =
          "Let me look.\n\n<｜DSML｜function_calls>\n<｜DSML｜invoke name=\"get\">\n"
          "<｜DSML｜parameter string=\"true\" name=\"city\">Paris, STOP\n</｜DSML｜invoke>\n"
          "</｜DSML｜function_calls>",
      .after_thinking = "First STOP here.\n\nThen [</think>]",
  });
  const std::string call = "[calls get {\"city\": \"Paris, STOP\"}]\n";
  const Reply plain = scripted.Chat({});
  CHECK(plain.content == "Let me look.");
  CHECK(plain.reasoning == call);
  CHECK(plain.finish == "TOOL_CALLS");
  const Reply thinking = scripted.Chat({"--thinking"});
  CHECK(thinking.content == "Let me look.");
  CHECK(thinking.reasoning == "First STOP here.\n\nThen " + call);
  CHECK(thinking.finish == "TOOL_CALLS");
  // Neither reasoning nor arguments nor what belongs to the markup stops anything ...
  for (const char* stop : {"STOP", "\n\n", "DSML", "Paris", "nowhere"}) {
    CAPTURE(stop);
    CHECK(scripted.Chat({"--thinking", "--stop", stop}) == thinking);
    CHECK(scripted.Chat({"--stop", stop}) == plain);
  }
  // ... and content does.
  const Reply stopped = scripted.Chat({"--thinking", "--stop", "look", "--stop", "nowhere"});
  CHECK(stopped.content == "Let me ");
  CHECK(stopped.reasoning == "First STOP here.\n\nThen ");
  CHECK(stopped.finish == "STOP");
  // Cut off within the call: no call, and nothing of it is lost.
  const Reply cut = scripted.Chat({"--max-tokens", "60"});
  CHECK(cut.finish == "LENGTH");
  CHECK(cut.reasoning.empty());
  CHECK(cut.content.starts_with("Let me look.\n\n<｜DSML｜function_calls>"));
}

TEST_CASE("a stop string that may begin a block waits until it is none", "[e2e][replies]") {
  const Scripted scripted(
      {.after_no_thinking = "One.\n\n<｜DSML｜ is a mark. Two.\n\nThree.", .after_thinking = ""});
  const Reply whole = scripted.Chat({});
  CHECK(whole.content == "One.\n\n<｜DSML｜ is a mark. Two.\n\nThree.");
  CHECK(whole.finish == "STOP");
  const Reply stopped = scripted.Chat({"--stop", "\n\n"});
  CHECK(stopped.content == "One.");
  CHECK(stopped.finish == "STOP");
  // What was drawn to find out is counted.
  CHECK(std::stoi(stopped.counts) > 5);
  CHECK(std::stoi(stopped.counts) < std::stoi(whole.counts));
}

TEST_CASE("a call within the reasoning, and marks that are only text", "[e2e][replies]") {
  const Scripted scripted({
      .after_no_thinking = "Write <think> and </think>, [<think>]",
      .after_thinking = "",
  });
  CHECK(scripted.Chat({}).content == "Write <think> and </think>, <think>");
  const Scripted reasoning({
      .after_no_thinking = "",
      .after_thinking = "I call it.\n\n<｜DSML｜tool_calls>\n<｜DSML｜invoke name=\"now\">\n"
                        "</｜DSML｜invoke>\n</｜DSML｜tool_calls>",
  });
  const Reply reply = reasoning.Chat({"--thinking"});
  CHECK(reply.content.empty());
  CHECK(reply.reasoning == "I call it.[calls now {}]\n");
  CHECK(reply.finish == "TOOL_CALLS");
}

TEST_CASE("calls of the older format, by tokens and not by text", "[e2e][replies]") {
  const Scripted scripted(
      {.after_no_thinking =
           "Sure. [<｜tool▁calls▁begin｜>][<｜tool▁call▁begin｜>]function[<｜tool▁sep｜>]get\n"
           "```json\n{\"a\": 1}\n```[<｜tool▁call▁end｜>][<｜tool▁calls▁end｜>]",
       .after_thinking =
           "It is <｜tool▁call▁begin｜>x<｜tool▁sep｜>{}<｜tool▁call▁end｜> [<｜User｜>]ok"},
      "v3.1");
  const Reply called = scripted.Chat({});
  CHECK(called.content == "Sure. ");
  CHECK(called.reasoning == "[calls get {\"a\": 1}]\n");
  CHECK(called.finish == "TOOL_CALLS");
  const Reply text = scripted.Chat({"--thinking"});
  CHECK(text.content.empty());
  CHECK(text.reasoning == "It is <｜tool▁call▁begin｜>x<｜tool▁sep｜>{}<｜tool▁call▁end｜> ok");
  CHECK(text.finish == "STOP");
}

TEST_CASE("a reply moves no terminal", "[e2e][replies]") {
  const Scripted scripted({.after_no_thinking = "red \x1b[31m\x07 bell", .after_thinking = ""});
  const Arguments arguments = {"chat", "--address", scripted.address(), "--temperature", "0", "hi"};
  CHECK(RunDsa(arguments, "").out == "red \x1b[31m\x07 bell\n");
  const std::string shown = Process(arguments, Streams::kTerminal).Wait().out;
  CHECK(shown.find("red ␛[31m␇ bell") != std::string::npos);
  CHECK(shown.find('\x1b') == std::string::npos);
  Arguments raw = arguments;
  raw.emplace_back("--raw");
  CHECK(Process(raw, Streams::kTerminal).Wait().out.find("\x1b[31m") != std::string::npos);
}

}  // namespace dsa
