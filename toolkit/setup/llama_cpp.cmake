# Read by CMake inside llama.cpp's own project. llama-cpp-python asks for the library that llama.cpp's command-line tools share,
# which is a third of the compiling, and packs neither it nor the tools.
set(LLAMA_BUILD_COMMON OFF)
