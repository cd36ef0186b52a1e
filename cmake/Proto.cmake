# gRPC and protobuf as static libraries, and C++ from our .proto files.
#
# dsa_grpc links Debian's archives, so that the binary needs no gRPC on the machine it runs on.
# The reflection plugin registers itself in a static initialiser and so is linked whole; absl's
# archives refer to each other in circles.
find_program(DSA_PROTOC protoc REQUIRED)
find_program(DSA_GRPC_CPP_PLUGIN grpc_cpp_plugin REQUIRED)
find_package(PkgConfig REQUIRED)
# Not pkg_check_modules, which asks twenty times: each time the hundred files of absl are read.
execute_process(COMMAND ${PKG_CONFIG_EXECUTABLE} --static --libs-only-l grpc++
  OUTPUT_VARIABLE dsa_grpc_libraries OUTPUT_STRIP_TRAILING_WHITESPACE COMMAND_ERROR_IS_FATAL ANY)
string(REGEX MATCHALL "[^ ]+" dsa_grpc_archives "${dsa_grpc_libraries}")
list(TRANSFORM dsa_grpc_archives REPLACE "^-l" "")
list(FILTER dsa_grpc_archives INCLUDE REGEX "^(grpc|gpr|address_sorting|upb|absl_|re2|cares|ssl|crypto|z$)")
list(REMOVE_DUPLICATES dsa_grpc_archives)
set(dsa_grpc_files)
foreach(archive IN LISTS dsa_grpc_archives ITEMS protobuf)
  find_library(DSA_ARCHIVE_${archive} lib${archive}.a REQUIRED)
  mark_as_advanced(DSA_ARCHIVE_${archive})
  list(APPEND dsa_grpc_files ${DSA_ARCHIVE_${archive}})
endforeach()
find_library(DSA_GRPC_REFLECTION libgrpc++_reflection.a REQUIRED)
list(JOIN dsa_grpc_files "," dsa_grpc_group)

add_library(dsa_grpc INTERFACE)
target_link_libraries(dsa_grpc INTERFACE
  "-Wl,--whole-archive,${DSA_GRPC_REFLECTION},--no-whole-archive"
  "-Wl,--start-group,${dsa_grpc_group},--end-group"
  Threads::Threads ${CMAKE_DL_LIBS} rt)

# dsa_proto_library(<name> FILES a.proto ...)   -> dsa::<name>, headers as "<folder>/a.pb.h" and, where
# the file has a service, "<folder>/a.grpc.pb.h".
function(dsa_proto_library name)
  cmake_parse_arguments(ARG "" "" "FILES" ${ARGN})
  set(generated_root ${PROJECT_BINARY_DIR}/generated)
  file(RELATIVE_PATH folder ${PROJECT_SOURCE_DIR} ${CMAKE_CURRENT_SOURCE_DIR})
  file(MAKE_DIRECTORY ${generated_root}/${folder})
  set(sources)
  set(dependencies)
  foreach(file IN LISTS ARG_FILES)
    list(APPEND dependencies ${CMAKE_CURRENT_SOURCE_DIR}/${file})
  endforeach()
  set_property(DIRECTORY APPEND PROPERTY CMAKE_CONFIGURE_DEPENDS ${dependencies})
  foreach(file IN LISTS ARG_FILES)
    cmake_path(REMOVE_EXTENSION file OUTPUT_VARIABLE stem)
    set(base ${generated_root}/${folder}/${stem})
    set(outputs ${base}.pb.cc ${base}.pb.h)
    set(grpc_options)
    file(STRINGS ${file} services REGEX "^service ")
    if(services)
      list(APPEND outputs ${base}.grpc.pb.cc ${base}.grpc.pb.h)
      list(APPEND sources ${base}.grpc.pb.cc)
      set(grpc_options --grpc_out=${generated_root} --plugin=protoc-gen-grpc=${DSA_GRPC_CPP_PLUGIN})
    endif()
    add_custom_command(
      OUTPUT ${outputs}
      COMMAND ${DSA_PROTOC} -I ${PROJECT_SOURCE_DIR} --cpp_out=${generated_root} ${grpc_options}
              ${folder}/${file}
      DEPENDS ${dependencies}
      WORKING_DIRECTORY ${PROJECT_SOURCE_DIR})
    list(APPEND sources ${base}.pb.cc)
  endforeach()
  add_library(dsa_${name} STATIC ${sources})
  add_library(dsa::${name} ALIAS dsa_${name})
  dsa_unsanitized(dsa_${name})  # like the library behind it
  target_include_directories(dsa_${name} SYSTEM PUBLIC ${generated_root})
  target_link_libraries(dsa_${name} PUBLIC dsa_grpc)
endfunction()
