#include "common/status.h"

#include <catch2/catch.hpp>

namespace dsa {
namespace {

Result<int> Half(int value) {
  if (value % 2 != 0) {
    return InvalidArgument("odd");
  }
  return value / 2;
}

Result<int> Quarter(int value) {
  DSA_ASSIGN_OR_RETURN(const int half, Half(value));
  return Half(half);
}

Status CheckEven(int value) {
  DSA_RETURN_IF_ERROR(Half(value));
  return {};
}

}  // namespace

TEST_CASE("errors travel up through the macros and values do not change", "[common][status]") {
  CHECK(Quarter(8).value() == 2);
  CHECK(Quarter(6).error().message == "odd");
  CHECK(Quarter(7).error().code == ErrorCode::kInvalidArgument);
  CHECK(CheckEven(2).ok());
  CHECK_FALSE(CheckEven(3).ok());
}

TEST_CASE("exit codes follow the kind of error", "[common][status]") {
  CHECK(ExitCode(InvalidArgument("x")) == 2);
  CHECK(ExitCode({ErrorCode::kNotFound, "x"}) == 2);
  CHECK(ExitCode({ErrorCode::kFailedPrecondition, "x"}) == 3);
  CHECK(ExitCode({ErrorCode::kInternal, "x"}) == 1);
}

}  // namespace dsa
