//! Kernels of ours for a GPU, of one source each (`kernels/`): compiled by NVRTC for the GPU that is there, or as C++ for tests.
//!
//! The program switches them on ([`open_kernels`]); networks, also those of plugins, then use them for tensors of a GPU. Where they cannot,
//! [`turned`], [`gated`] and [`normed`] give nothing, and the caller goes on with operations of libtorch.

use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::hash::BuildHasher;
use std::io::Write;
use std::path::{Path, PathBuf};

use tch::{Kind, Tensor};
use torch_sys::C_tensor;

use crate::{Error, Result, checked};

// SAFETY: the signatures repeat cpp/block.cpp, cpp/kernels.cpp and cpp/nvrtc.cpp.
unsafe extern "C" {
    fn maskdiff_turned(
        qkv: *const C_tensor,
        cos: *const C_tensor,
        sin: *const C_tensor,
        heads: i64,
        three: *mut *mut C_tensor,
    ) -> *mut c_char;
    fn maskdiff_gated(
        x: *const C_tensor,
        gate: *const C_tensor,
        h: *const C_tensor,
        p: f64,
        seed: *const C_tensor,
        result: *mut *mut C_tensor,
    ) -> *mut c_char;
    fn maskdiff_normed(
        x: *const C_tensor,
        weight: *const C_tensor,
        shift: *const C_tensor,
        scale: *const C_tensor,
        kind: c_int,
        two: *mut *mut C_tensor,
    ) -> *mut c_char;
    fn maskdiff_kernels_architecture(device: c_int, result: *mut c_int) -> *mut c_char;
    fn maskdiff_kernels_load(device: c_int, image: *const c_void) -> *mut c_char;
    fn maskdiff_kernels_switch(cuda: c_int, to: c_int) -> *mut c_char;
    fn maskdiff_kernels_on() -> c_int;
    fn maskdiff_kernels_text() -> *const c_char;
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

fn pointer(tensor: Option<&Tensor>) -> *const C_tensor {
    tensor.map_or(std::ptr::null(), Tensor::as_ptr)
}

/// New handles of C++ as tensors; nothing where it made none.
fn made<const N: usize>(handles: [*mut C_tensor; N]) -> Option<[Tensor; N]> {
    // SAFETY: all of them are new tensors, or none is.
    (!handles[0].is_null()).then(|| handles.map(|handle| unsafe { Tensor::from_ptr(handle) }))
}

/// Queries, keys and values of a linear map's result `[B, L, 3 H K]`, `[B, H, L, K]` each, the first two rotated by `cos` and `sin`
/// `[L, 1, 1, K/2]` or `[B, L, 1, 1, K/2]`. The result of the map is overwritten: nothing else may use it. Differentiable once.
///
/// Nothing where the kernels are off or do not read such tensors (float32 and bfloat16).
///
/// # Errors
/// A kernel that a GPU refuses.
pub fn turned(qkv: &Tensor, cos: &Tensor, sin: &Tensor, heads: i64) -> Result<Option<[Tensor; 3]>> {
    let mut three = [std::ptr::null_mut(); 3];
    // SAFETY: live tensors, and places for three new ones.
    checked(unsafe {
        maskdiff_turned(qkv.as_ptr(), cos.as_ptr(), sin.as_ptr(), heads, three.as_mut_ptr())
    })?;
    Ok(made(three))
}

/// `x + gate dropout(h)`: `x` and `h [B, L, D]`, `gate [1 or B, 1, D]`, none for a gate of 1. Differentiable once.
///
/// A number of `h` is dropped with probability `p` rounded to a multiple of 2^-16, by 16 bits of Philox with a seed that is drawn on the
/// device. Nothing where the kernels are off or do not read such tensors.
///
/// # Errors
/// A kernel that a GPU refuses.
pub fn gated(x: &Tensor, gate: Option<&Tensor>, h: &Tensor, p: f64) -> Result<Option<Tensor>> {
    gated_by(x, gate, h, p, None)
}

/// [`gated`] by a seed `[2] i64`.
fn gated_by(
    x: &Tensor,
    gate: Option<&Tensor>,
    h: &Tensor,
    p: f64,
    seed: Option<&Tensor>,
) -> Result<Option<Tensor>> {
    let mut result = std::ptr::null_mut();
    // SAFETY: live tensors or null, and a place for the new one.
    checked(unsafe {
        maskdiff_gated(x.as_ptr(), pointer(gate), h.as_ptr(), p, pointer(seed), &raw mut result)
    })?;
    Ok(made([result]).map(|[out]| out))
}

/// A layer norm of `x [B, L, D]` with a weight `[D]`, then `(1 + scale)` times it plus `shift`, `[1 or B, 1, D]` each, where they are given:
/// `x` itself, and the norm in `kind` (that in which the next product is computed, if none is given). The gradient of what else becomes
/// of this `x` is added in the same pass. Differentiable once.
///
/// Nothing where the kernels are off or do not read such tensors.
///
/// # Errors
/// A kernel that a GPU refuses.
pub fn normed(
    x: &Tensor,
    weight: &Tensor,
    modulation: Option<(&Tensor, &Tensor)>,
    kind: Option<Kind>,
) -> Result<Option<[Tensor; 2]>> {
    let kind = match kind {
        None => -1,
        Some(Kind::Float) => 6,
        Some(Kind::BFloat16) => 15,
        Some(_) => return Ok(None),
    };
    let mut two = [std::ptr::null_mut(); 2];
    let (shift, scale) = (modulation.map(|m| m.0), modulation.map(|m| m.1));
    // SAFETY: live tensors or null, and places for two new ones.
    checked(unsafe {
        maskdiff_normed(
            x.as_ptr(),
            weight.as_ptr(),
            pointer(shift),
            pointer(scale),
            kind,
            two.as_mut_ptr(),
        )
    })?;
    Ok(made(two))
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
    /// The first that opens: in one of these folders, or where the loader looks.
    ///
    /// # Errors
    /// None, with what was said of each.
    pub fn find(folders: &[PathBuf]) -> Result<Self> {
        let mut tried = Vec::new();
        let beside = folders.iter().filter_map(|folder| {
            let named = |start: &str| of_name(folder, start);
            Some((named("libnvrtc.so.")?, named("libnvrtc-builtins.so.")))
        });
        let known =
            ["libnvrtc.so.13", "libnvrtc.so.12"].map(|name| (Path::new(name).to_owned(), None));
        for (library, builtins) in beside.chain(known) {
            match Self::opened(&library, builtins.as_deref()) {
                Ok(found) => return Ok(found),
                Err(Error(said)) => tried.push(said),
            }
        }
        Err(Error(format!("NVRTC does not open: {}", tried.join("; "))))
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

    fn compile_text(&self, text: &CStr, architecture: c_int) -> Result<Vec<u8>> {
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
    fn name(&self, architecture: c_int) -> String {
        let hash = hash_of(text().to_bytes());
        format!("{hash:016x}-nvrtc{}-sm_{architecture}.cubin", self.version)
    }

    fn cached(&self, architecture: c_int, cache: Option<&Path>, trusted: bool) -> Result<Vec<u8>> {
        let file = cache.map(|folder| folder.join(self.name(architecture)));
        cached(file.as_deref(), trusted, || self.compile(architecture))
    }
}

/// FNV-1a, 64 bits: the same in every build.
fn hash_of(bytes: &[u8]) -> u64 {
    let step = |hash: u64, byte: &u8| (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3);
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, step)
}

/// The image of a file where that is trusted and whole, or a new one, which the file then has. One that cannot be written keeps nothing.
fn cached(
    file: Option<&Path>,
    trusted: bool,
    make: impl FnOnce() -> Result<Vec<u8>>,
) -> Result<Vec<u8>> {
    if let Some(image) = file.filter(|_| trusted).and_then(whole) {
        return Ok(image);
    }
    let image = make()?;
    if let Some(file) = file {
        let _ = keep(file, &image);
    }
    Ok(image)
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

/// The image of a file, behind its hash: the driver is told no length, and would read on behind a part of one.
fn whole(file: &Path) -> Option<Vec<u8>> {
    let mut bytes = std::fs::read(file).ok()?;
    let hash = u64::from_le_bytes(bytes.get(..8)?.try_into().ok()?);
    bytes.drain(..8);
    (hash == hash_of(&bytes)).then_some(bytes)
}

/// Writes the file of an image whole or not at all: other processes may be at it, also on other machines.
fn keep(file: &Path, image: &[u8]) -> std::io::Result<()> {
    if let Some(folder) = file.parent() {
        std::fs::create_dir_all(folder)?;
    }
    let random = std::hash::RandomState::new().hash_one(std::process::id());
    let beside = file.with_extension(format!("{random:016x}.part"));
    let write = || {
        let mut new = std::fs::File::create_new(&beside)?;
        new.write_all(&hash_of(image).to_le_bytes())?;
        new.write_all(image)?;
        new.sync_all()?;
        std::fs::rename(&beside, file)
    };
    let kept = write();
    if kept.is_err() {
        let _ = std::fs::remove_file(&beside);
    }
    kept
}

/// The source of the kernels.
fn text() -> &'static CStr {
    // SAFETY: a string of C that lives as long as the program.
    unsafe { CStr::from_ptr(maskdiff_kernels_text()) }
}

/// Lets networks use the kernels on GPU `device` from now on. Needs [`crate::open_cuda`]. They are compiled where the folder `cache` has
/// them not yet; `folders` may hold NVRTC.
///
/// # Errors
/// No library over CUDA, no NVRTC, a compiler or a driver that refuses. The kernels then stay off.
pub fn open_kernels(device: usize, folders: &[PathBuf], cache: Option<&Path>) -> Result<()> {
    let index = c_int::try_from(device).unwrap_or(c_int::MAX);
    let mut architecture = 0;
    // SAFETY: a place for a number.
    checked(unsafe { maskdiff_kernels_architecture(index, &raw mut architecture) })?;
    if architecture > 0 {
        let nvrtc = Nvrtc::find(folders)?;
        let load = |image: &[u8]| {
            // SAFETY: an image as NVRTC made it, which the driver copies.
            checked(unsafe { maskdiff_kernels_load(index, image.as_ptr().cast()) })
        };
        // A file that something else has damaged is made anew.
        if load(&nvrtc.cached(architecture, cache, true)?).is_err() {
            load(&nvrtc.cached(architecture, cache, false)?)?;
        }
    }
    switch_kernels(true)
}

/// Whether networks use the kernels on a GPU, once they are open.
///
/// # Errors
/// libtorch refuses their operators.
pub fn switch_kernels(on: bool) -> Result<()> {
    // SAFETY: plain numbers.
    checked(unsafe { maskdiff_kernels_switch(1, c_int::from(on)) })
}

/// Whether networks use the kernels on a GPU.
pub fn kernels_are_on() -> bool {
    // SAFETY: reads a number.
    (unsafe { maskdiff_kernels_on() }) != 0
}

#[cfg(test)]
mod tests;
