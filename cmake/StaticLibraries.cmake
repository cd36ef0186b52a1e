# Libraries that end inside the binary, so that it runs on a machine without Debian's packages.
find_package(Threads REQUIRED)
find_package(nlohmann_json REQUIRED)
set(OPENSSL_USE_STATIC_LIBS ON)
find_package(OpenSSL REQUIRED)

find_library(DSA_PCRE2_LIBRARY NAMES libpcre2-8.a REQUIRED)
add_library(dsa_pcre2 INTERFACE)
add_library(PkgConfig::PCRE2 ALIAS dsa_pcre2)
target_compile_definitions(dsa_pcre2 INTERFACE PCRE2_STATIC)
target_link_libraries(dsa_pcre2 INTERFACE ${DSA_PCRE2_LIBRARY})

# fmt and spdlog exist as shared libraries only: their non-header sources are compiled here.
add_library(dsa_fmt STATIC ${PROJECT_SOURCE_DIR}/common/fmt_library.cpp)
add_library(fmt::fmt ALIAS dsa_fmt)
add_library(dsa_spdlog STATIC ${PROJECT_SOURCE_DIR}/common/spdlog_library.cpp)
add_library(spdlog::spdlog ALIAS dsa_spdlog)
target_compile_definitions(dsa_spdlog PUBLIC SPDLOG_FMT_EXTERNAL SPDLOG_COMPILED_LIB)
target_link_libraries(dsa_spdlog PUBLIC dsa_fmt Threads::Threads)
dsa_unsanitized(dsa_spdlog)

if(NOT DSA_SANITIZE)
  add_link_options(-static-libstdc++ -static-libgcc)
endif()
