# dsa_join_sources(<target>): with DSA_JOIN_SOURCES its C++ sources are compiled up to eight at a time, but for
# those that are marked as CMake's unity builds would have it: headers are most of what is compiled.  CMake's own
# joined sources name the others by their place on the disk, so that ccache finds nothing for another clone.
function(dsa_join_sources target)
  if(DSA_JOIN_SOURCES)  # once all properties are set
    cmake_language(EVAL CODE "cmake_language(DEFER DIRECTORY [[${PROJECT_SOURCE_DIR}]] CALL dsa_join_now ${target})")
  endif()
endfunction()

function(dsa_join_now target)
  get_target_property(sources ${target} SOURCES)
  get_target_property(folder ${target} SOURCE_DIR)
  get_target_property(build_folder ${target} BINARY_DIR)
  set(kept)
  set(joined)
  foreach(source IN LISTS sources)
    get_source_file_property(apart ${folder}/${source} TARGET_DIRECTORY ${target} SKIP_UNITY_BUILD_INCLUSION)
    if(source MATCHES "\\.cpp$" AND NOT IS_ABSOLUTE ${source} AND NOT apart)
      list(APPEND joined ${source})
    else()
      list(APPEND kept ${source})
    endif()
  endforeach()
  list(LENGTH joined count)
  set(first 0)
  while(first LESS count)
    list(SUBLIST joined ${first} 8 group)
    set(text "")
    foreach(source IN LISTS group)
      cmake_path(ABSOLUTE_PATH source BASE_DIRECTORY ${folder} NORMALIZE)
      cmake_path(RELATIVE_PATH source BASE_DIRECTORY ${PROJECT_SOURCE_DIR})
      string(APPEND text "#include \"${source}\"\n")
    endforeach()
    set(file ${build_folder}/joined/${target}_${first}.cpp)
    file(GENERATE OUTPUT ${file} CONTENT "${text}")
    list(APPEND kept ${file})
    math(EXPR first "${first} + 8")
  endwhile()
  set_target_properties(${target} PROPERTIES SOURCES "${kept}" UNITY_BUILD OFF)
endfunction()

# dsa_library(<name> SOURCES ... [DEPS ...] [PRIVATE_DEPS ...] [HOT])
#   -> target dsa_<name>, alias dsa::<name>
# DEPS repeat the include graph of docs/architecture.md.  Tests spend their time in HOT libraries: they
# are optimised in sanitized builds too, which takes the compiler twice as long.
function(dsa_library name)
  cmake_parse_arguments(ARG "HOT" "" "SOURCES;DEPS;PRIVATE_DEPS" ${ARGN})
  add_library(dsa_${name} STATIC ${ARG_SOURCES})
  add_library(dsa::${name} ALIAS dsa_${name})
  target_include_directories(dsa_${name} PUBLIC ${PROJECT_SOURCE_DIR})
  target_link_libraries(dsa_${name} PUBLIC ${ARG_DEPS} PRIVATE ${ARG_PRIVATE_DEPS} dsa_warnings)
  dsa_join_sources(dsa_${name})
  if(DSA_SANITIZE AND ARG_HOT)
    target_compile_options(dsa_${name} PRIVATE -O1)
  endif()
endfunction()

# dsa_unsanitized(<target>): others' code, which the sanitizers do not watch.  Its command lines do not name
# them either, so that ccache finds for one sanitizer what was compiled for another.
function(dsa_unsanitized target)
  get_target_property(options ${target} COMPILE_OPTIONS)
  list(FILTER options EXCLUDE REGEX "sanitize")
  set_target_properties(${target} PROPERTIES COMPILE_OPTIONS "${options}" DSA_UNSANITIZED ON)
endfunction()

# dsa_compile_tests(<target> [HOT]): how the sources of tests are compiled.
function(dsa_compile_tests target)
  cmake_parse_arguments(ARG "HOT" "" "" ${ARGN})
  # Much of the time of compiling a test goes into optimising Catch2's macros: it is worth that only where
  # the test computes much itself.
  set(level -O0)
  if(ARG_HOT)
    set(level -O1)
  endif()
  target_compile_options(${target} PRIVATE $<$<CONFIG:RelWithDebInfo>:${level}>)
  # An exception within an assertion ends the case, as one outside does, for a tenth less to compile.
  target_compile_definitions(${target} PRIVATE CATCH_CONFIG_FAST_COMPILE)
  dsa_join_sources(${target})
endfunction()

# dsa_test(<name> SOURCES ... DEPS ... [COST <n>] [LIMIT_S <n>] [HOT])   -> executable <name>, one CTest test per
# test case.  CTest begins with what costs most: a long case that comes last leaves the other cores idle.
# A case that takes longer than its limit says where it stands and ends (tests/main.cpp); should it not even
# do that, CTest ends it a little later.
set(DSA_CASE_LIMIT_S 240)
function(dsa_test name)
  cmake_parse_arguments(ARG "HOT" "COST;LIMIT_S" "SOURCES;DEPS" ${ARGN})
  if(NOT ARG_COST)
    set(ARG_COST 0)
  endif()
  if(NOT ARG_LIMIT_S)
    set(ARG_LIMIT_S ${DSA_CASE_LIMIT_S})
  endif()
  math(EXPR timeout_s "${ARG_LIMIT_S} + 20")
  add_executable(${name} ${ARG_SOURCES})
  target_link_libraries(${name} PRIVATE ${ARG_DEPS} dsa_catch_main dsa_test_paths dsa_warnings)
  set(hot "")
  if(ARG_HOT)
    set(hot HOT)
  endif()
  dsa_compile_tests(${name} ${hot})
  catch_discover_tests(${name} TEST_PREFIX "${name}: " EXTRA_ARGS --case-limit-s ${ARG_LIMIT_S}
    PROPERTIES TIMEOUT ${timeout_s} COST ${ARG_COST})
endfunction()
