# Requirements that every target of ours has, as interface targets.
add_library(dsa_warnings INTERFACE)
target_compile_options(dsa_warnings INTERFACE
  $<$<COMPILE_LANGUAGE:CXX>:-Wall;-Wextra;-Wshadow;-Wconversion;-Wno-sign-conversion;-Wvla>
  $<$<AND:$<COMPILE_LANGUAGE:CXX>,$<BOOL:${DSA_WARNINGS_ARE_ERRORS}>>:-Werror>
  $<$<COMPILE_LANGUAGE:CUDA>:-Xcompiler=-Wall,-Wextra;--Werror=cross-execution-space-call>
  # constexpr functions of common/ are called from device code; 554 is about the conversions of
  # views to themselves, which are never called.
  $<$<COMPILE_LANGUAGE:CUDA>:--expt-relaxed-constexpr;--diag-suppress=554>)

# Contraction off: the same source gives the same bits at every optimisation level; fused
# multiply-adds are written where they are wanted.
add_compile_options(
  $<$<COMPILE_LANGUAGE:CXX>:-march=${DSA_CPU_LEVEL}>
  $<$<COMPILE_LANGUAGE:CXX>:-ffp-contract=off>
  $<$<COMPILE_LANGUAGE:CXX>:-fno-omit-frame-pointer>)
if(DSA_SANITIZE)
  add_compile_options($<$<COMPILE_LANGUAGE:CXX>:-fsanitize=${DSA_SANITIZE}>
                      $<$<COMPILE_LANGUAGE:CXX>:-fno-sanitize-recover=all>
                      # A check at every access, for 40 % of the time to compile and to run: what
                      # null pointers and wrong objects do, the address sanitizer sees, and the few
                      # places that make typed pointers from bytes align what they place there.
                      # pointer-overflow: for two thirds of the time that the tiles of products take to
                      # compile; what such a pointer reads, the address sanitizer sees as well.
                      $<$<COMPILE_LANGUAGE:CXX>:-fno-sanitize=null,alignment,object-size,vptr,pointer-overflow>)
  add_link_options(-fsanitize=${DSA_SANITIZE} -fuse-ld=lld)
  # What GCC defines and Clang 14 does not; our tests ask it, and the headers of libraries do.
  set(watched $<NOT:$<BOOL:$<TARGET_PROPERTY:DSA_UNSANITIZED>>>)
  if(DSA_SANITIZE MATCHES "address")
    add_compile_definitions($<${watched}:__SANITIZE_ADDRESS__>)
  elseif(DSA_SANITIZE MATCHES "thread")
    add_compile_definitions($<${watched}:__SANITIZE_THREAD__>)
  endif()
endif()
