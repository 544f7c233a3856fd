# libdlfs_cuda.so: cuDNN, cuBLASLt, nvJPEG, NCCL and our kernels. scripts/find-cuda.sh finds the parts, which may come
# from different places (a toolkit, the system's packages, NVIDIA's Python wheels), and scripts/build.sh passes them:
#   CMAKE_CUDA_COMPILER      nvcc
#   DLFS_CUDA_INCLUDE_DIRS   folders of headers
#   DLFS_CUDA_LIBRARIES      libraries by full path: the wheels carry libcudnn.so.9 and no libcudnn.so
#   DLFS_CUDA_PRELOADS       libraries to load although no symbol of them is used here, by full path
#   DLFS_CUDA_RPATH          folders of those libraries that the system's loader would not search
#   DLFS_NCCL_INCLUDE_DIR    folder of nccl.h; empty: built without communicators. NCCL itself is opened at run time
#   DLFS_CUDA_ARCHS          such as 90a or 75;80;90: compute capabilities to compile for
#   DLFS_CUDA_PTX            the compute capability to embed PTX for, for cards newer than all of them; empty: none
foreach(name CMAKE_CUDA_COMPILER DLFS_CUDA_INCLUDE_DIRS DLFS_CUDA_LIBRARIES DLFS_CUDA_ARCHS)
  if(NOT ${name})
    message(FATAL_ERROR "${name} is not set: build by scripts/build.sh cuda, which finds CUDA's parts")
  endif()
endforeach()

# Architectures are passed as plain flags: CMake checks its own list against the CUDA versions that it knew of.
set(CMAKE_CUDA_ARCHITECTURES OFF)
# Wheels keep libraries in lib/ where nvcc's own profile says lib64/: the compiler check needs to be told.
get_filename_component(cuda_root "${CMAKE_CUDA_COMPILER}" DIRECTORY)
get_filename_component(cuda_root "${cuda_root}" DIRECTORY)
if(EXISTS "${cuda_root}/lib" AND NOT EXISTS "${cuda_root}/lib64")
  set(CMAKE_CUDA_FLAGS_INIT "-L\"${cuda_root}/lib\"")
endif()
# The runtime comes in DLFS_CUDA_LIBRARIES.
set(CMAKE_CUDA_RUNTIME_LIBRARY None)
enable_language(CUDA)

file(GLOB sources CONFIGURE_DEPENDS
  "${PROJECT_SOURCE_DIR}/csrc/common/*.cpp" "${PROJECT_SOURCE_DIR}/csrc/cuda/*.cpp"
  "${PROJECT_SOURCE_DIR}/csrc/cuda/*.cu")
target_sources(dlfs PRIVATE ${sources})
set_target_properties(dlfs PROPERTIES
  CUDA_STANDARD 17
  CUDA_VISIBILITY_PRESET hidden
  CUDA_ARCHITECTURES OFF
  CUDA_RUNTIME_LIBRARY None
  LINKER_LANGUAGE CXX
  INSTALL_RPATH "$ORIGIN;${DLFS_CUDA_RPATH}")

set(gencode "")
foreach(arch IN LISTS DLFS_CUDA_ARCHS)
  list(APPEND gencode "SHELL:-gencode arch=compute_${arch},code=sm_${arch}")
endforeach()
if(DLFS_CUDA_PTX)
  list(APPEND gencode "SHELL:-gencode arch=compute_${DLFS_CUDA_PTX},code=compute_${DLFS_CUDA_PTX}")
endif()
string(REPLACE ";" "," arch_names "${DLFS_CUDA_ARCHS}")
# No --use_fast_math: it would change divisions, square roots and denormals. -lineinfo costs nothing at run time and
# lets compute-sanitizer and the profilers name source lines; what it adds to the file (the PTX text, above all) is what
# compression takes away, and the code shrinks to a third, too.
target_compile_options(dlfs PRIVATE
  "$<$<COMPILE_LANGUAGE:CUDA>:-O3;-lineinfo;--compress-mode=size;--expt-relaxed-constexpr;--threads=1;-Xcompiler=-Wall;${gencode}>")
# Box, loss and sampling maths give the CPU's bits: no product is merged with a sum.
foreach(name anchors augment candidates losses losses_anchor losses_softmax matching nms preprocess select_candidates
        soft_nms topk)
  set_source_files_properties("${PROJECT_SOURCE_DIR}/csrc/cuda/${name}.cu" PROPERTIES COMPILE_OPTIONS -fmad=false)
endforeach()
target_compile_definitions(dlfs PRIVATE "DLFS_CUDA_ARCHS=\"${arch_names}\"")
target_include_directories(dlfs SYSTEM PRIVATE ${DLFS_CUDA_INCLUDE_DIRS})
if(DLFS_CUDA_PRELOADS)
  target_link_libraries(dlfs PRIVATE -Wl,--push-state,--no-as-needed ${DLFS_CUDA_PRELOADS} -Wl,--pop-state)
endif()
target_link_libraries(dlfs PRIVATE ${DLFS_CUDA_LIBRARIES} ${CMAKE_DL_LIBS} rt)
if(DLFS_NCCL_INCLUDE_DIR)
  target_compile_definitions(dlfs PRIVATE DLFS_HAVE_NCCL=1)
  # By itself: one of the system's own folders among the others would reorder the C++ headers.
  set_source_files_properties("${PROJECT_SOURCE_DIR}/csrc/cuda/comm.cpp" PROPERTIES
    INCLUDE_DIRECTORIES "${DLFS_NCCL_INCLUDE_DIR}")
else()
  message(STATUS "dlfs: built without NCCL, so several GPUs cannot train together. It comes with scripts/cuda-wheels.sh.")
endif()

# libjpeg-turbo decodes what nvJPEG refuses (CMYK, arithmetic coding); without it dlfs_supports("jpeg.cmyk") is 0.
include("${PROJECT_SOURCE_DIR}/cmake/images.cmake")
dlfs_link_images(dlfs)

message(STATUS "dlfs: CUDA library for ${arch_names} with ${CMAKE_CUDA_COMPILER} (${CMAKE_CUDA_COMPILER_VERSION}), "
  "header ${header_hash}")
