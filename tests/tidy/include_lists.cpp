#include "tests/tidy/include_lists.h"

#include <cctype>
#include <sstream>
#include <string_view>
#include <utility>

namespace dsa::tidy {
namespace {

// Names of the standard library by the header that they are for.  Those of the last row come with
// so many headers that whoever uses them has one.
const std::vector<std::pair<std::string, std::string>>& NamesByHeader() {
  static const std::vector<std::pair<std::string, std::string>> names = {
      {"algorithm",
       "adjacent_find all_of any_of binary_search clamp copy copy_n count_if equal fill fill_n "
       "find find_if "
       "find_if_not for_each generate is_sorted lower_bound max max_element min min_element "
       "minmax_element "
       "mismatch none_of nth_element partial_sort replace reverse rotate shuffle sort stable_sort "
       "transform "
       "unique upper_bound"},
      {"array", "array"},
      {"atomic",
       "atomic atomic_ref memory_order_acq_rel memory_order_acquire memory_order_relaxed "
       "memory_order_release memory_order_seq_cst"},
      {"barrier", "barrier"},
      {"bit",
       "bit_cast bit_ceil bit_floor bit_width countl_zero countr_zero endian has_single_bit "
       "popcount"},
      {"bitset", "bitset"},
      {"charconv", "chars_format from_chars to_chars"},
      {"chrono", "chrono"},
      {"cmath",
       "ceil cos exp exp2 fabs floor fma fmax frexp isfinite isinf isnan ldexp log log1p log2 nan "
       "nearbyintf "
       "nextafter pow round sin sqrt trunc"},
      {"concepts", "integral"},
      {"condition_variable", "condition_variable"},
      {"csignal", "signal"},
      {"cstdint", "int16_t int32_t int64_t int8_t uint16_t uint32_t uint64_t uint8_t uintptr_t"},
      {"cstdio", "FILE fclose ferror fflush fopen fprintf fputc fwrite setvbuf"},
      {"cstdlib", "abort aligned_alloc atoi free getenv strtoll"},
      {"cstring", "memcmp memcpy memset strerror"},
      {"ctime", "strftime time time_t tm"},
      {"deque", "deque"},
      {"exception", "current_exception exception exception_ptr rethrow_exception set_terminate"},
      {"filesystem", "filesystem"},
      {"fstream", "ifstream ofstream"},
      {"functional", "function less plus"},
      {"future", "future promise"},
      {"initializer_list", "initializer_list"},
      {"iostream", "cin"},
      {"limits", "numeric_limits"},
      {"list", "list"},
      {"map", "map"},
      {"memory",
       "enable_shared_from_this make_shared make_unique make_unique_for_overwrite shared_ptr "
       "unique_ptr "
       "weak_ptr"},
      {"mutex", "call_once lock_guard mutex once_flag scoped_lock unique_lock"},
      {"new", "align_val_t bad_alloc"},
      {"numbers", "numbers"},
      {"numeric", "accumulate iota"},
      {"optional", "nullopt optional"},
      {"random", "mt19937 mt19937_64 normal_distribution random_device"},
      {"set", "set"},
      {"span", "as_bytes as_writable_bytes span"},
      {"sstream", "istringstream ostringstream"},
      {"string", "getline stoi string to_string"},
      {"string_view", "string_view"},
      {"system_error", "errc error_code system_error"},
      {"thread", "thread"},
      {"tuple", "tie tuple"},
      {"type_traits", "conditional_t is_const_v is_same_v remove_pointer_t"},
      {"unordered_map", "unordered_map"},
      {"unordered_set", "unordered_set"},
      {"utility", "exchange forward move pair"},
      {"variant", "get_if holds_alternative variant visit"},
      {"vector", "vector"},
      {"",
       "abs begin byte count end erase erase_if get input_iterator_tag ios istream "
       "istreambuf_iterator locale "
       "make_move_iterator micro milli nullptr_t prev ptrdiff_t size size_t streamsize swap "
       "terminate "
       "this_thread"},
  };
  return names;
}

bool IsWordCharacter(char c) {
  return std::isalnum(static_cast<unsigned char>(c)) != 0 || c == '_';
}

bool IsWord(std::string_view token) {
  return !token.empty() && IsWordCharacter(token[0]) &&
         std::isdigit(static_cast<unsigned char>(token[0])) == 0;
}

// Words, numbers, "::", "->" and single other characters, without the lines of the preprocessor.
std::vector<std::string_view> Tokens(std::string_view code) {
  std::vector<std::string_view> tokens;
  bool line_begins = true;
  for (std::size_t i = 0; i < code.size();) {
    std::size_t size = 1;
    if (code[i] == '#' && line_begins) {
      while (i + size < code.size() && (code[i + size] != '\n' || code[i + size - 1] == '\\')) {
        ++size;
      }
    } else if (std::isspace(static_cast<unsigned char>(code[i])) != 0) {
      line_begins = line_begins || code[i] == '\n';
    } else {
      line_begins = false;
      while (IsWordCharacter(code[i]) && i + size < code.size() &&
             IsWordCharacter(code[i + size])) {
        ++size;
      }
      const std::string_view two = code.substr(i, 2);
      size = two == "::" || two == "->" ? 2 : size;
      tokens.push_back(code.substr(i, size));
    }
    i += size;
  }
  return tokens;
}

struct File {
  std::string text;  // without comments and literals; what `tokens` look at
  std::vector<std::string_view> tokens;
  std::vector<std::string> ours;        // that it includes
  std::set<std::string> others;         // likewise
  std::set<std::string_view> declares;  // wherever: parameters and members as well
};

// Whether the word at `i` is declared there rather than used.
bool Declares(const std::vector<std::string_view>& tokens, std::size_t i) {
  static const std::set<std::string_view> no_type = {
      "return",    "new",     "case",      "else",    "const", "static", "inline",
      "constexpr", "mutable", "explicit",  "virtual", "throw", "goto",   "and",
      "or",        "not",     "co_return", "extern",  "if",    "while",  "requires"};
  if (i == 0) {
    return false;
  }
  const std::string_view before = tokens[i - 1];
  const bool called = i + 1 < tokens.size() && tokens[i + 1] == "(";
  const bool by_using = before == "::" && i + 1 < tokens.size() && tokens[i + 1] == ";";
  return (IsWord(before) && no_type.count(before) == 0) || by_using ||
         (called && (before == "&" || before == "*" || before == ">"));
}

// Types, functions and constants of the namespaces.
std::set<std::string_view> Exported(const std::vector<std::string_view>& tokens) {
  std::set<std::string_view> names;
  int inner = 0;  // open braces and parentheses that are no namespace's
  bool of_namespace = false;
  std::vector<bool> namespaces;
  for (std::size_t i = 0; i + 1 < tokens.size(); ++i) {
    const std::string_view token = tokens[i];
    const std::string_view next = tokens[i + 1];
    if (token == "namespace") {
      of_namespace = true;
    } else if (token == "{") {
      namespaces.push_back(std::exchange(of_namespace, false));
      inner += namespaces.back() ? 0 : 1;
    } else if (token == "}" && !namespaces.empty()) {
      inner -= namespaces.back() ? 0 : 1;
      namespaces.pop_back();
    } else if (token == "(" || token == ")") {
      inner += token == "(" ? 1 : -1;
    } else if (inner == 0 && i > 0 && IsWord(token)) {
      const std::string_view before = tokens[i - 1];
      const bool type = (before == "class" || before == "struct" || before == "enum") &&
                        (next == "{" || next == ":" || next == "final");
      const bool alias = before == "using" && next == "=";
      const bool constant = token.size() > 1 && token[0] == 'k' && std::isupper(token[1]) != 0 &&
                            (next == "=" || next == "{" || next == "[");
      const bool function = next == "(" && std::isupper(token[0]) != 0 && Declares(tokens, i);
      if (type || alias || constant || function) {
        names.insert(token);
      }
    }
  }
  return names;
}

std::map<std::string, File> Read(const std::vector<Source>& sources) {
  std::map<std::string, File> files;
  for (const Source& source : sources) {
    File& file = files[source.path];
    file.text = CodeOnly(source.text);
    file.tokens = Tokens(file.text);
    bool enumerates = false;
    for (std::size_t i = 0; i < file.tokens.size(); ++i) {
      enumerates = file.tokens[i] == "enum" || (enumerates && file.tokens[i] != "}");
      if (IsWord(file.tokens[i]) && (enumerates || Declares(file.tokens, i))) {
        file.declares.insert(file.tokens[i]);
      }
    }
    std::istringstream lines(source.text);
    for (std::string line; std::getline(lines, line);) {
      if (line.rfind("#include \"", 0) == 0) {
        file.ours.push_back(line.substr(10, line.find('"', 10) - 10));
      } else if (line.rfind("#include <", 0) == 0) {
        file.others.insert(line.substr(10, line.find('>') - 10));
      }
    }
  }
  return files;
}

// `path` and our headers that it includes, however far.
std::set<std::string> Reached(const std::map<std::string, File>& files, const std::string& path) {
  std::set<std::string> reached = {path};
  std::vector<std::string> open = {path};
  while (!open.empty()) {
    const auto file = files.find(open.back());
    open.pop_back();
    if (file == files.end()) {
      continue;
    }
    for (const std::string& included : file->second.ours) {
      if (reached.insert(included).second) {
        open.push_back(included);
      }
    }
  }
  return reached;
}

bool IsHeader(const std::string& path) {
  return path.size() > 2 && path.substr(path.size() - 2) == ".h";
}

}  // namespace

std::vector<Complaint> CheckIncludeLists(const std::vector<Source>& sources) {
  std::map<std::string, std::string> standard;  // name -> header
  for (const auto& [header, names] : NamesByHeader()) {
    std::istringstream words(names);
    for (std::string name; words >> name;) {
      standard[name] = header;
    }
  }
  const std::map<std::string, File> files = Read(sources);
  std::map<std::string_view, std::string> home;  // "" where there are several
  for (const auto& [path, file] : files) {
    if (IsHeader(path)) {
      for (const std::string_view name : Exported(file.tokens)) {
        const auto [at, is_new] = home.emplace(name, path);
        at->second = is_new ? path : "";
      }
    }
  }
  std::vector<Complaint> complaints;
  for (const auto& [path, file] : files) {
    if (path.find(".cu") != std::string::npos) {
      continue;
    }
    const std::set<std::string> reached = Reached(files, path);
    std::set<std::string> others;
    std::set<std::string_view> declared;
    for (const std::string& header : reached) {
      if (const auto at = files.find(header); at != files.end()) {
        others.insert(at->second.others.begin(), at->second.others.end());
        declared.insert(at->second.declares.begin(), at->second.declares.end());
      }
    }
    std::map<std::string, std::string> missing;  // header -> for what
    const std::vector<std::string_view>& tokens = file.tokens;
    for (std::size_t i = 0; i < tokens.size(); ++i) {
      const std::string_view before = i > 0 ? tokens[i - 1] : "";
      if (before == "::" && i > 1 && tokens[i - 2] == "std") {
        const auto at = standard.find(std::string(tokens[i]));
        if (at == standard.end()) {
          complaints.push_back(
              {path, 0, "std::" + std::string(tokens[i]) + " is not in the table"});
        } else if (!at->second.empty() && others.count(at->second) == 0) {
          missing.emplace("<" + at->second + ">", tokens[i]);
        }
      } else if (tokens[i] == "fmt" && i + 1 < tokens.size() && tokens[i + 1] == "::") {
        const auto at = others.lower_bound("fmt/");
        if (at == others.end() || at->rfind("fmt/", 0) != 0) {
          missing.emplace("<fmt/core.h>", "fmt");
        }
      } else if (before != "." && before != "->" && before != "::") {
        const auto at = home.find(tokens[i]);
        if (at != home.end() && !at->second.empty() && reached.count(at->second) == 0 &&
            declared.count(tokens[i]) == 0) {
          missing.emplace(at->second, tokens[i]);
        }
      }
    }
    for (const auto& [header, name] : missing) {
      complaints.push_back({path, 0, name + " without " + header});
    }
  }
  return complaints;
}

}  // namespace dsa::tidy
