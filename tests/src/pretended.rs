//! A pretended CUDA device for programs that tests start, and for a test that starts itself again: see tests/device.
#![expect(unsafe_code, reason = "asks the preloaded library for its counts")]

use std::collections::BTreeMap;
use std::ffi::{c_char, c_void};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use crate::run::{Output, command, finish};
use crate::{root, skipped, target};

/// The library; none, with a line that says so, where there is no compiler for it.
pub fn library() -> Option<&'static Path> {
    static BUILT: OnceLock<Option<PathBuf>> = OnceLock::new();
    let built = BUILT.get_or_init(|| {
        if Command::new("c++").arg("--version").output().is_err() {
            skipped("the pretended device needs a C++ compiler (`c++`)");
            return None;
        }
        let library = target().join("libpretended.so");
        let script = root().join("tests/device/build.sh");
        let built = Command::new(script).arg(&library).output().expect("tests/device/build.sh");
        let said = String::from_utf8_lossy(&built.stderr);
        assert!(built.status.success(), "the pretended device does not compile:\n{said}");
        Some(library)
    });
    built.as_deref()
}

/// What a run has cost.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Cost {
    /// Kernels that a GPU would start.
    pub operators: i64,
    /// Values, or shapes, for which the host waits.
    pub reads: i64,
    /// Copies to the host, each of which it waits for.
    pub to_host: i64,
    /// Copies from the host.
    pub to_device: i64,
}

impl Cost {
    /// How often the host waits for the device.
    pub fn waits(&self) -> i64 {
        self.reads + self.to_host
    }

    /// What was spent since `before`.
    #[must_use]
    pub fn since(&self, before: &Self) -> Self {
        Self {
            operators: self.operators - before.operators,
            reads: self.reads - before.reads,
            to_host: self.to_host - before.to_host,
            to_device: self.to_device - before.to_device,
        }
    }

    /// What this process has spent so far; none where the library is not loaded into it.
    pub fn so_far() -> Option<Self> {
        unsafe extern "C" {
            fn dlsym(library: *mut c_void, name: *const c_char) -> *mut c_void;
        }
        // SAFETY: looks a name up among all that is loaded.
        let found = unsafe { dlsym(std::ptr::null_mut(), c"pretended_counts".as_ptr()) };
        if found.is_null() {
            return None;
        }
        // SAFETY: the function of that name in tests/device/device.cpp, which is of this type.
        let counts: extern "C" fn(*mut i64) = unsafe { std::mem::transmute(found) };
        let mut four = [0; 4];
        counts(four.as_mut_ptr());
        let [operators, reads, to_host, to_device] = four;
        Some(Self { operators, reads, to_host, to_device })
    }

    /// What a program wrote at its end.
    fn of_file(file: &Path) -> Self {
        let text = std::fs::read_to_string(file).expect("the program computed on the device");
        let pair = |line: &str| {
            let (name, number) = line.split_once(' ')?;
            Some((name.to_string(), number.parse().ok()?))
        };
        let found: BTreeMap<String, i64> = text.lines().filter_map(pair).collect();
        Self {
            operators: found["operators"],
            reads: found["reads"],
            to_host: found["to_host"],
            to_device: found["to_device"],
        }
    }
}

/// `maskdiff WORDS` in `folder` with the library in it, and what it has cost. It must end well.
#[track_caller]
pub fn maskdiff(library: &Path, folder: &Path, words: &[&str]) -> (Output, Cost) {
    let file = folder.join("cost");
    let mut command = command(folder, words);
    command.env("LD_PRELOAD", library).env("PRETENDED_COUNTS", &file);
    let out = finish(&mut command);
    out.expect(0);
    (out, Cost::of_file(&file))
}

/// From now on this process writes a line for each kernel of the pretended device into a file; none ends that.
pub fn record(file: Option<&Path>) {
    unsafe extern "C" {
        fn dlsym(library: *mut c_void, name: *const c_char) -> *mut c_void;
    }
    // SAFETY: looks a name up among all that is loaded.
    let found = unsafe { dlsym(std::ptr::null_mut(), c"pretended_record".as_ptr()) };
    assert!(!found.is_null(), "the pretended device");
    // SAFETY: the function of that name in tests/device/record.cpp, which is of this type.
    let record: extern "C" fn(*const c_char) -> i32 = unsafe { std::mem::transmute(found) };
    let name = file.map(|file| {
        std::ffi::CString::new(file.as_os_str().as_encoded_bytes()).expect("a file name")
    });
    let failed = record(name.as_ref().map_or(std::ptr::null(), |name| name.as_ptr()));
    assert_eq!(failed, 0, "a file that can be written");
}

/// Reads the first byte of a tensor's memory as a careless line of the host would.
pub fn touch(tensor: &tch::Tensor) -> u8 {
    // SAFETY: memory of a tensor that lives; on the pretended device nobody may read it, and the process ends.
    unsafe { std::ptr::read_volatile(tensor.data_ptr().cast::<u8>()) }
}
