//! NVRTC, NVIDIA's compiler as a library, which is opened where it is found.

use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::path::{Path, PathBuf};

use super::images::{cached, hash_of};
use crate::{Error, Result, checked};

// SAFETY: the signatures repeat cpp/nvrtc.cpp.
unsafe extern "C" {
    fn maskdiff_kernels_text() -> *const c_char;
    fn maskdiff_kernels_options() -> *const c_char;
    fn maskdiff_nvrtc_version(
        path: *const c_char,
        builtins: *const c_char,
        result: *mut c_int,
    ) -> *mut c_char;
    fn maskdiff_nvrtc_compile(
        path: *const c_char,
        builtins: *const c_char,
        text: *const c_char,
        architecture: *const c_char,
        into: *mut c_void,
        give: unsafe extern "C" fn(*mut c_void, *const c_char, usize),
    ) -> *mut c_char;
}

/// NVIDIA's compiler as a library.
#[derive(Debug)]
pub struct Nvrtc {
    library: CString,
    builtins: Option<CString>,
    /// 1000 major + minor.
    version: c_int,
}

impl Nvrtc {
    /// Those that open: in these folders first, then where the loader looks.
    ///
    /// # Errors
    /// None, with what was said of each.
    pub fn all(folders: &[PathBuf]) -> Result<Vec<Self>> {
        let beside = folders.iter().filter_map(|folder| {
            let named = |start: &str| of_name(folder, start);
            Some((named("libnvrtc.so.")?, named("libnvrtc-builtins.so.")))
        });
        let known =
            ["libnvrtc.so.13", "libnvrtc.so.12"].map(|name| (Path::new(name).to_owned(), None));
        let (mut found, mut tried) = (Vec::new(), Vec::new());
        for (library, builtins) in beside.chain(known) {
            match Self::opened(&library, builtins.as_deref()) {
                Ok(one) => found.push(one),
                Err(Error(said)) => tried.push(said),
            }
        }
        if found.is_empty() {
            return Err(Error(format!("NVRTC does not open: {}", tried.join("; "))));
        }
        Ok(found)
    }

    fn opened(library: &Path, builtins: Option<&Path>) -> Result<Self> {
        let c = |path: &Path| {
            CString::new(path.as_os_str().as_encoded_bytes())
                .map_err(|_| Error(format!("`{}` is no file name", path.display())))
        };
        let (library, builtins) = (c(library)?, builtins.map(c).transpose()?);
        let mut found = Self { library, builtins, version: 0 };
        let builtins = found.builtins();
        // SAFETY: strings of C, or null, and a place for a number.
        checked(unsafe {
            maskdiff_nvrtc_version(found.library.as_ptr(), builtins, &raw mut found.version)
        })?;
        Ok(found)
    }

    fn builtins(&self) -> *const c_char {
        self.builtins.as_ref().map_or(std::ptr::null(), |name| name.as_ptr())
    }

    /// The kernels as an image for an architecture, 90 for sm_90. It takes seconds, and no GPU.
    ///
    /// # Errors
    /// What the compiler says.
    pub fn compile(&self, architecture: c_int) -> Result<Vec<u8>> {
        self.compile_text(text(), architecture)
    }

    pub(super) fn compile_text(&self, text: &CStr, architecture: c_int) -> Result<Vec<u8>> {
        unsafe extern "C" fn give(into: *mut c_void, bytes: *const c_char, count: usize) {
            // SAFETY: `compile_text` hands out the vector, and C++ the bytes of an image.
            let (into, bytes) = unsafe {
                (
                    &mut *into.cast::<Vec<u8>>(),
                    std::slice::from_raw_parts(bytes.cast::<u8>(), count),
                )
            };
            into.extend_from_slice(bytes);
        }
        let name = CString::new(format!("sm_{architecture}")).unwrap_or_default();
        let mut image = Vec::new();
        // SAFETY: strings of C; `give` gets the vector, which nobody else uses meanwhile.
        checked(unsafe {
            maskdiff_nvrtc_compile(
                self.library.as_ptr(),
                self.builtins(),
                text.as_ptr(),
                name.as_ptr(),
                (&raw mut image).cast(),
                give,
            )
        })?;
        Ok(image)
    }

    /// What an image is called on disk: by all that it depends on.
    pub(super) fn name(&self, architecture: c_int) -> String {
        let hash = hash_of(&[text().to_bytes_with_nul(), options().to_bytes()].concat());
        format!("{hash:016x}-nvrtc{}-sm_{architecture}.cubin", self.version)
    }

    fn cached(&self, architecture: c_int, cache: Option<&Path>, trusted: bool) -> Result<Vec<u8>> {
        let file = cache.map(|folder| folder.join(self.name(architecture)));
        cached(file.as_deref(), trusted, || self.compile(architecture))
    }
}

/// Hands an image to `load`, by the first compiler of which it takes one.
///
/// # Errors
/// What became of each.
pub(super) fn load_by_one_of(
    compilers: &[Nvrtc],
    architecture: c_int,
    cache: Option<&Path>,
    load: &dyn Fn(&[u8]) -> Result<()>,
) -> Result<()> {
    let mut tried = Vec::new();
    for nvrtc in compilers {
        let loaded = nvrtc.cached(architecture, cache, true).and_then(|image| {
            // A file that something else has damaged is made anew.
            load(&image).or_else(|_| load(&nvrtc.cached(architecture, cache, false)?))
        });
        match loaded {
            Ok(()) => return Ok(()),
            Err(Error(said)) => {
                tried.push(format!("{said} (`{}`)", nvrtc.library.to_string_lossy()))
            }
        }
    }
    Err(Error(tried.join("; ")))
}

/// The file of a folder whose name begins so and is not one of the other build that NVIDIA puts beside it.
fn of_name(folder: &Path, start: &str) -> Option<PathBuf> {
    let mut found: Vec<PathBuf> = std::fs::read_dir(folder)
        .ok()?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| path.file_name().is_some_and(|n| n.to_string_lossy().starts_with(start)))
        .collect();
    found.sort();
    found.into_iter().next()
}

/// The source of the kernels.
fn text() -> &'static CStr {
    // SAFETY: a string of C that lives as long as the program.
    unsafe { CStr::from_ptr(maskdiff_kernels_text()) }
}

/// What it is compiled with, beside the architecture.
fn options() -> &'static CStr {
    // SAFETY: a string of C that lives as long as the program.
    unsafe { CStr::from_ptr(maskdiff_kernels_options()) }
}
