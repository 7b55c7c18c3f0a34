//! Compilers, and what they make.

use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::super::images::{cached, whole};
use super::super::nvrtc::{Nvrtc, load_by_one_of};
use super::*;
use crate::Error;

/// The compiler of the torch that `scripts/setup.sh --python` fetched, or of this machine.
fn nvrtc() -> Option<Nvrtc> {
    let cache = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from);
    let home = || std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".cache"));
    let lib = cache.or_else(home)?.join("maskdiff/python-2.11.0/lib");
    let versions = std::fs::read_dir(lib)
        .into_iter()
        .flatten()
        .filter_map(|entry| Some(entry.ok()?.path().join("site-packages/nvidia/cu13/lib")));
    let found = Nvrtc::all(&versions.collect::<Vec<_>>());
    if let Err(error) = &found {
        use std::io::Write as _;
        let _ = writeln!(std::io::stderr(), "skipped: {error}; see scripts/setup.sh --python");
    }
    found.ok().map(|all| all.into_iter().next().expect("one or an error"))
}

/// Each architecture takes some 15 seconds: `MASKDIFF_TEST_ARCHITECTURES=80,86,89,90,100,120` tries others too.
#[test]
fn the_kernels_compile_for_gpus_that_are_not_here() {
    let Some(nvrtc) = nvrtc() else { return };
    let named = std::env::var("MASKDIFF_TEST_ARCHITECTURES");
    let named = named.as_deref().unwrap_or("80,90,100").split(',');
    for architecture in named.map(|number| number.parse().expect("as in 80,90")) {
        let image = nvrtc.compile(architecture).unwrap();
        assert!(image.starts_with(b"\x7fELF"), "sm_{architecture}");
        // Every kernel that the shim may ask for is there by its name.
        for name in [
            "turn_b",
            "gated_fb",
            "gated_back_ff",
            "columns",
            "norm_bb",
            "norm_back_fb",
            "nll_b",
            "bound_b",
        ] {
            let held = image.windows(name.len()).any(|bytes| bytes == name.as_bytes());
            assert!(held, "sm_{architecture} has no {name}");
        }
    }
    let said = nvrtc.compile_text(c"__global__ void f() { nothing(); }", 90).unwrap_err();
    assert!(said.to_string().contains("nothing"), "{said}");
    let said = nvrtc.compile(7).unwrap_err().to_string();
    assert!(said.contains("sm_7"), "{said}");
}

#[test]
fn images_are_kept_on_disk_where_that_is_possible() {
    let folder = std::env::temp_dir().join(format!("maskdiff-kernels-{}", std::process::id()));
    let file = folder.join("of/an.cubin");
    let made = |image: &'static [u8]| move || Ok(image.to_vec());
    assert_eq!(cached(Some(&file), true, made(b"first")).unwrap(), b"first");
    // What is there is taken; what the driver has refused is made anew.
    assert_eq!(cached(Some(&file), true, made(b"second")).unwrap(), b"first");
    assert_eq!(cached(Some(&file), false, made(b"third")).unwrap(), b"third");
    assert_eq!(whole(&file).unwrap(), b"third");
    // A part of a file, an empty one and one of something else are made anew, and never reach the driver.
    let kept = std::fs::read(&file).unwrap();
    for damaged in [&kept[..kept.len() - 1], &kept[..4], b"", b"a text of some other program"] {
        std::fs::write(&file, damaged).unwrap();
        assert_eq!(cached(Some(&file), true, made(b"anew")).unwrap(), b"anew");
        assert_eq!(whole(&file).unwrap(), b"anew");
    }
    // Ranks that begin together: one compiles, and the others wait for what it makes.
    let (together, compiled) = (folder.join("of/together.cubin"), AtomicUsize::new(0));
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                let make = || {
                    compiled.fetch_add(1, Ordering::Relaxed);
                    std::thread::sleep(std::time::Duration::from_millis(200));
                    Ok(b"one".to_vec())
                };
                assert_eq!(cached(Some(&together), true, make).unwrap(), b"one");
            });
        }
    });
    assert_eq!(compiled.into_inner(), 1);
    std::fs::remove_file(&together).unwrap();
    assert_eq!(
        std::fs::read_dir(folder.join("of")).unwrap().count(),
        1,
        "nothing is left beside it"
    );
    // A file in the place of the folder, or no folder: nothing can be kept, and nothing is lost.
    let below = file.join("an.cubin");
    assert_eq!(cached(Some(&below), true, made(b"fourth")).unwrap(), b"fourth");
    assert_eq!(cached(None, true, made(b"fifth")).unwrap(), b"fifth");
    let refused = || Err(Error::new("no compiler"));
    assert!(cached(Some(&below), true, refused).is_err());
    std::fs::remove_dir_all(&folder).unwrap();
}

#[test]
fn a_compiler_that_is_not_there_is_said_in_words() {
    let folder = std::env::temp_dir().join(format!("maskdiff-nvrtc-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    std::fs::write(folder.join("libnvrtc.so.13"), b"no library").unwrap();
    let found = Nvrtc::all(std::slice::from_ref(&folder));
    std::fs::remove_dir_all(&folder).unwrap();
    // The loader may know one of the machine.
    let Err(error) = found else { return };
    let said = error.to_string();
    assert!(said.contains("NVRTC does not open") && said.contains("libnvrtc.so.13"), "{said}");
    let refused = open_kernels(0, &[], None).unwrap_err().to_string();
    assert!(refused.contains("is not open"), "{refused}");
}

/// A compiler whose every program is `image`, or refused where that is empty.
fn stand_in(folder: &Path, image: &str) -> Nvrtc {
    std::fs::create_dir_all(folder).unwrap();
    let source = format!(
        r#"#include <cstring>
        #define OF(name, ...) extern "C" int name(__VA_ARGS__)
        static const char image[] = "{image}";
        OF(nvrtcVersion, int* a, int* b) {{ *a = 13; *b = 0; return 0; }}
        OF(nvrtcCreateProgram, void**, const char*, const char*, int, const char* const*, const char* const*) {{ return 0; }}
        OF(nvrtcCompileProgram, void*, int, const char* const*) {{ return sizeof image > 1 ? 0 : 6; }}
        OF(nvrtcGetProgramLogSize, void*, size_t* n) {{ *n = 0; return 0; }}
        OF(nvrtcGetProgramLog, void*, char*) {{ return 0; }}
        OF(nvrtcGetCUBINSize, void*, size_t* n) {{ *n = sizeof image - 1; return 0; }}
        OF(nvrtcGetCUBIN, void*, char* into) {{ std::memcpy(into, image, sizeof image - 1); return 0; }}
        OF(nvrtcDestroyProgram, void**) {{ return 0; }}
        extern "C" const char* nvrtcGetErrorString(int) {{ return "COMPILATION"; }}"#
    );
    std::fs::write(folder.join("source.cpp"), source).unwrap();
    let library = folder.join("libnvrtc.so.13");
    let made = std::process::Command::new("c++")
        .args(["-shared", "-fPIC", "-o"])
        .args([&library, &folder.join("source.cpp")])
        .status();
    assert!(made.unwrap().success());
    std::fs::copy(&library, folder.join("libnvrtc-builtins.so.13")).unwrap();
    Nvrtc::all(&[folder.to_path_buf()]).unwrap().swap_remove(0)
}

#[test]
fn where_one_compiler_fails_the_next_is_tried() {
    let folder = std::env::temp_dir().join(format!("maskdiff-compilers-{}", std::process::id()));
    let all = [("none", ""), ("wrong", "not for us"), ("right", "an image")]
        .map(|(name, image)| stand_in(&folder.join(name), image));
    let load = |image: &[u8]| match image {
        b"an image" => Ok(()),
        _ => Err(Error::new("the driver does not take it")),
    };
    load_by_one_of(&all, 90, None, &load).unwrap();
    let said = load_by_one_of(&all[..2], 90, None, &load).unwrap_err().to_string();
    std::fs::remove_dir_all(&folder).unwrap();
    for word in ["COMPILATION", "none/libnvrtc.so.13", "does not take it", "wrong/libnvrtc.so.13"] {
        assert!(said.contains(word), "{word}: {said}");
    }
}
