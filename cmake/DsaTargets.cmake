# dsa_library(<name> SOURCES ... [DEPS ...] [PRIVATE_DEPS ...])   -> target dsa_<name>, alias dsa::<name>
# DEPS repeat the include graph of docs/architecture.md.
function(dsa_library name)
  cmake_parse_arguments(ARG "" "" "SOURCES;DEPS;PRIVATE_DEPS" ${ARGN})
  add_library(dsa_${name} STATIC ${ARG_SOURCES})
  add_library(dsa::${name} ALIAS dsa_${name})
  target_include_directories(dsa_${name} PUBLIC ${PROJECT_SOURCE_DIR})
  target_link_libraries(dsa_${name} PUBLIC ${ARG_DEPS} PRIVATE ${ARG_PRIVATE_DEPS} dsa_warnings)
endfunction()

# dsa_test(<name> SOURCES ... DEPS ...)   -> executable <name>, one CTest test per test case.
function(dsa_test name)
  cmake_parse_arguments(ARG "" "" "SOURCES;DEPS" ${ARGN})
  add_executable(${name} ${ARG_SOURCES})
  target_link_libraries(${name} PRIVATE ${ARG_DEPS} dsa_catch_main dsa_test_paths dsa_warnings)
  # Much of the time of compiling a test, two thirds where it is sanitized, goes into optimising
  # Catch2's macros.
  if(DSA_SANITIZE)
    target_compile_options(${name} PRIVATE -O0)
  else()
    target_compile_options(${name} PRIVATE $<$<CONFIG:RelWithDebInfo>:-O1>)
  endif()
  catch_discover_tests(${name} TEST_PREFIX "${name}: " PROPERTIES TIMEOUT 600)
endfunction()
