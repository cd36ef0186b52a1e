#include "server/exchange_self_test.h"

#include "common/view_parts.h"
#include "kernels/comm/collectives.h"
#include "server/collective_values.h"

#include <algorithm>
#include <utility>
#include <vector>

namespace dsa {
namespace {

// Rows of values of the type, row by row.
template <typename ValueOfPlace>
std::vector<std::byte> Rows(DataType type, std::int64_t rows, std::int64_t cols,
                            const ValueOfPlace& value) {
  std::vector<std::byte> bytes(static_cast<std::size_t>(rows * cols * SizeOf(type)));
  for (std::int64_t i = 0; i < rows * cols; ++i) {
    if (type == DataType::kBf16) {
      reinterpret_cast<Bf16*>(bytes.data())[i] = ToBf16(value(i / cols, i % cols));
    } else {
      reinterpret_cast<float*>(bytes.data())[i] = value(i / cols, i % cols);
    }
  }
  return bytes;
}

// Device memory that is as `values` are.
template <typename T>
Status Upload(Backend& backend, const std::vector<T>& values, DeviceBuffer& buffer) {
  DSA_ASSIGN_OR_RETURN(buffer, backend.Allocate(values.size() * sizeof(T)));
  backend.CopyToDevice(buffer.data(), values.data(), values.size() * sizeof(T));
  backend.Synchronize();
  return {};
}
template <typename T>
std::vector<T> Download(Backend& backend, const DeviceBuffer& buffer) {
  std::vector<T> values(buffer.bytes() / sizeof(T));
  backend.Synchronize();
  backend.CopyToHost(values.data(), buffer.data(), buffer.bytes());
  backend.Synchronize();
  return values;
}

// What a rank exchanges.  Row t of data rank s is row s * rows + t of all.
class ExchangeTest final {
 public:
  ExchangeTest(Backend& backend, const RankPlace& place, const ModelConfig& model,
               std::int64_t rows)
      : backend_(backend),
        place_(place),
        rows_(rows),
        all_rows_(rows * place.layout.data_ranks),
        hidden_(model.hidden),
        experts_(model.experts),
        chosen_(model.experts_per_token),
        type_(model.activation_type),
        sender_(place.rank / place.layout.ranks) {
    const Part experts = ShapeOf(model, place).experts;
    here_ = {.first = experts.first, .count = experts.count};
  }

  Status Allocate() {
    const auto row = [this](std::int64_t t, std::int64_t d) {
      return ValueOf(sender_ * rows_ + t, d);
    };
    const auto contribution = [this](std::int64_t pair, std::int64_t d) {
      constexpr float kOther = 77.0F;  // of an expert that is not here
      return IsHere(ExpertOf(pair / chosen_, pair % chosen_)) ? Contribution(pair, d) : kOther;
    };
    std::vector<std::int32_t> ids;
    for (std::int64_t pair = 0; pair < rows_ * chosen_; ++pair) {
      ids.push_back(ExpertOf(sender_ * rows_ + pair / chosen_, pair % chosen_));
    }
    DSA_RETURN_IF_ERROR(Upload(backend_, Rows(type_, rows_, hidden_, row), x_));
    DSA_RETURN_IF_ERROR(Upload(backend_, Rows(type_, rows_, hidden_, Shared), y_));
    DSA_RETURN_IF_ERROR(
        Upload(backend_, Rows(type_, all_rows_ * chosen_, hidden_, contribution), contributions_));
    DSA_RETURN_IF_ERROR(Upload(backend_, ids, ids_));
    DSA_RETURN_IF_ERROR(Upload(backend_, std::vector<float>(ids.size(), 1.0F), weights_));
    const auto live = static_cast<std::int32_t>(Live(sender_));
    DSA_RETURN_IF_ERROR(Upload(backend_, std::vector<std::int32_t>{live}, live_));
    DSA_RETURN_IF_ERROR(
        Upload(backend_, std::vector<std::int32_t>(ids.size() * Senders(), 99), row_experts_));
    const auto nothing = [](std::int64_t, std::int64_t) { return 0.0F; };
    return Upload(backend_, Rows(type_, all_rows_, hidden_, nothing), received_);
  }

  void Run() {
    const Matrix<const std::int32_t> own = {ids_.As<const std::int32_t>(), rows_, chosen_, chosen_};
    const Matrix<std::int32_t> came = {row_experts_.As<std::int32_t>(), all_rows_, chosen_,
                                       chosen_};
    const Vector<const std::int32_t> live = {live_.As<const std::int32_t>(), 1};
    backend_.Dispatch({.x = View(x_, rows_),
                       .experts = own,
                       .live_rows = live,
                       .here = here_,
                       .copies = place_.layout.ranks,
                       .rows = View(received_, all_rows_),
                       .row_experts = came});
    backend_.Combine({.contributions = View(contributions_, all_rows_ * chosen_),
                      .row_experts = AsConst(came),
                      .experts = own,
                      .live_rows = live,
                      .weights = {weights_.As<const float>(), rows_, chosen_, chosen_},
                      .here = here_,
                      .copies = place_.layout.ranks,
                      .shared = View(y_, rows_),
                      .y = View(y_, rows_)});
  }

  Status Compare() const {
    if (const std::int64_t wrong = WrongOfRows(); wrong > 0) {
      return Differs(place_.rank, "Dispatch", rows_, hidden_, wrong);
    }
    const std::int64_t wrong =
        Wrong(Download<std::byte>(backend_, y_), type_, rows_ * hidden_, [&](std::int64_t i) {
          const std::int64_t t = i / hidden_;
          float sum = Shared(t, i % hidden_);
          for (std::int64_t k = 0; t < Live(sender_) && k < chosen_; ++k) {
            sum += Contribution((sender_ * rows_ + t) * chosen_ + k, i % hidden_);
          }
          return sum;
        });
    return wrong == 0 ? Status() : Differs(place_.rank, "Combine", rows_, hidden_, wrong);
  }

 private:
  std::size_t Senders() const { return static_cast<std::size_t>(place_.layout.data_ranks); }
  std::int64_t Live(std::int64_t sender) const {
    return rows_ == 1 ? 1 : std::max<std::int64_t>(rows_ - sender - 1, 0);
  }
  std::int32_t ExpertOf(std::int64_t row, std::int64_t k) const {
    const std::int64_t apart = std::max<std::int64_t>(experts_ / chosen_, 1);
    return static_cast<std::int32_t>((row * 7 + k * apart) % experts_);
  }
  bool IsHere(std::int32_t expert) const {
    return expert >= here_.first && expert < here_.first + here_.count;
  }
  static float Contribution(std::int64_t pair, std::int64_t d) { return ValueOf(pair + 3, d); }
  static float Shared(std::int64_t t, std::int64_t d) { return ValueOf(t + 5, d); }
  AnyMatrix View(const DeviceBuffer& buffer, std::int64_t rows) const {
    return {buffer.data(), type_, rows, hidden_, hidden_};
  }

  // Ids that are not those of the rank's experts, and values of rows that have some.
  std::int64_t WrongOfRows() const {
    const auto ids = Download<std::int32_t>(backend_, row_experts_);
    const auto rows = Download<std::byte>(backend_, received_);
    const std::int64_t bytes = hidden_ * SizeOf(type_);
    std::int64_t wrong = 0;
    for (std::int64_t row = 0; row < all_rows_; ++row) {
      bool has_some = false;
      for (std::int64_t k = 0; k < chosen_; ++k) {
        const std::int32_t expert = ExpertOf(row, k);
        const bool is_here = row % rows_ < Live(row / rows_) && IsHere(expert);
        has_some = has_some || is_here;
        wrong +=
            ids[static_cast<std::size_t>(row * chosen_ + k)] == (is_here ? expert : -1) ? 0 : 1;
      }
      if (has_some) {
        const std::vector<std::byte> got(rows.begin() + row * bytes,
                                         rows.begin() + (row + 1) * bytes);
        wrong += Wrong(got, type_, hidden_, [&](std::int64_t d) { return ValueOf(row, d); });
      }
    }
    return wrong;
  }

  Backend& backend_;
  const RankPlace place_;
  const std::int64_t rows_;
  const std::int64_t all_rows_;
  const std::int64_t hidden_;
  const std::int64_t experts_;
  const std::int64_t chosen_;
  const DataType type_;
  const std::int64_t sender_;  // the data rank
  ExpertRange here_{};
  DeviceBuffer x_, y_, contributions_, ids_, weights_, live_, row_experts_, received_;
};

}  // namespace

Status CheckExchange(Backend& backend, const RankPlace& place, const ModelConfig& model,
                     std::int64_t rows) {
  ExchangeTest test(backend, place, model, rows);
  DSA_RETURN_IF_ERROR(test.Allocate());
  test.Run();
  return test.Compare();
}

}  // namespace dsa
