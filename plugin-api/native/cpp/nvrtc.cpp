// Compiles the kernels of ../kernels for a GPU by NVIDIA's NVRTC, a library that is opened where it is found: the machine needs no CUDA
// toolkit, and no GPU either. See shim.h for how errors leave.

#include <c10/util/Exception.h>
#include <dlfcn.h>

#include "shim.h"

namespace {

const char* const kText =
#include "kernels_text.inc"
    ;

// Beside the architecture.
const char* const kOptions = "--std=c++17";

using Program = struct ProgramOfNvrtc*;

struct Nvrtc {
  int (*version)(int*, int*);
  int (*create)(Program*, const char*, const char*, int, const char* const*, const char* const*);
  int (*compile)(Program, int, const char* const*);
  int (*log_size)(Program, size_t*);
  int (*log)(Program, char*);
  int (*image_size)(Program, size_t*);
  int (*image)(Program, char*);
  int (*destroy)(Program*);
  const char* (*words)(int);

  // `builtins` is what NVRTC opens by its name alone, which the loader may not know: it is there already then.
  Nvrtc(const char* path, const char* builtins) {
    if (builtins) TORCH_CHECK(dlopen(builtins, RTLD_NOW | RTLD_GLOBAL), dlerror());
    void* library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    TORCH_CHECK(library, dlerror());
    const auto find = [&](const char* name, auto& into) {
      into = reinterpret_cast<std::remove_reference_t<decltype(into)>>(dlsym(library, name));
      TORCH_CHECK(into, path, " has no ", name);
    };
    find("nvrtcVersion", version);
    find("nvrtcCreateProgram", create);
    find("nvrtcCompileProgram", compile);
    find("nvrtcGetProgramLogSize", log_size);
    find("nvrtcGetProgramLog", log);
    find("nvrtcGetCUBINSize", image_size);
    find("nvrtcGetCUBIN", image);
    find("nvrtcDestroyProgram", destroy);
    find("nvrtcGetErrorString", words);
  }

  void check(int result, const char* what) const { TORCH_CHECK(result == 0, "NVRTC ", what, ": ", words(result)); }
};

// What the compiler said, in one line.
std::string said(const Nvrtc& nvrtc, Program program) {
  size_t size = 0;
  if (nvrtc.log_size(program, &size) != 0 || size == 0) return "";
  std::string log(size, '\0');
  if (nvrtc.log(program, log.data()) != 0) return "";
  log.resize(std::min<size_t>(strlen(log.c_str()), 1000));
  std::replace(log.begin(), log.end(), '\n', ' ');
  return log;
}

}  // namespace

extern "C" {

const char* maskdiff_kernels_text() { return kText; }
const char* maskdiff_kernels_options() { return kOptions; }

// 1000 major + minor.
char* maskdiff_nvrtc_version(const char* path, const char* builtins, int* result) {
  return guarded([&] {
    int major = 0, minor = 0;
    const Nvrtc nvrtc(path, builtins);
    nvrtc.check(nvrtc.version(&major, &minor), "has no version");
    *result = 1000 * major + minor;
  });
}

// A text for an architecture as `sm_90` -> an image, which `give` takes.
char* maskdiff_nvrtc_compile(const char* path, const char* builtins, const char* text, const char* architecture, void* into,
                             void (*give)(void* into, const char* bytes, size_t count)) {
  return guarded([&] {
    const Nvrtc nvrtc(path, builtins);
    Program program = nullptr;
    nvrtc.check(nvrtc.create(&program, text, "maskdiff.cu", 0, nullptr, nullptr), "takes no text");
    struct End {
      const Nvrtc& nvrtc;
      Program* program;
      ~End() { nvrtc.destroy(program); }
    } const end{nvrtc, &program};
    const std::string for_it = std::string("--gpu-architecture=") + architecture;
    const char* const options[] = {for_it.c_str(), kOptions};
    const int result = nvrtc.compile(program, 2, options);
    TORCH_CHECK(result == 0, "the kernels do not compile for ", architecture, " (", nvrtc.words(result), "): ", said(nvrtc, program));
    size_t size = 0;
    nvrtc.check(nvrtc.image_size(program, &size), "made nothing");
    std::vector<char> image(size);
    nvrtc.check(nvrtc.image(program, image.data()), "made nothing");
    give(into, image.data(), image.size());
  });
}

}  // extern "C"
