//! Bakes into every plugin which libtorch it is built against, and hands the library folder on
//! to crates that make executables (their build.rs reads `DEP_MASKDIFF_PLUGIN_API_LIBTORCH_LIB`).

use std::path::Path;

fn main() {
    let lib = std::env::var("DEP_TCH_LIBTORCH_LIB")
        .expect("torch-sys did not say where libtorch is: run scripts/setup.sh and build again");
    let header = Path::new(&lib).join("../include/torch/headeronly/version.h");
    let version = torch_version(&header);
    assert!(
        version.starts_with("2.11."),
        "{} is libtorch {version}, expected 2.11: run scripts/setup.sh and build again",
        header.display()
    );
    let library = Path::new(&lib).join("libtorch_cpu.so");
    let build_id = std::fs::read(&library).ok().and_then(|elf| gnu_build_id(&elf));
    println!("cargo::rerun-if-changed={}", header.display());
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::metadata=libtorch_lib={lib}");
    println!("cargo::rustc-link-arg=-Wl,-rpath,{lib}");
    println!("cargo::rustc-env=MASKDIFF_TORCH_VERSION={version}");
    println!("cargo::rustc-env=MASKDIFF_TORCH_BUILD_ID={}", build_id.unwrap_or_default());
    let rustc = std::env::var("RUSTC").unwrap_or_else(|_| "rustc".into());
    let said = std::process::Command::new(rustc).arg("--version").output();
    let said = said.map(|o| String::from_utf8_lossy(&o.stdout).trim().to_string());
    println!("cargo::rustc-env=MASKDIFF_RUSTC={}", said.unwrap_or_default());
}

/// `2.11.0` from the three numbers in libtorch's version header.
fn torch_version(header: &Path) -> String {
    let text = std::fs::read_to_string(header).unwrap_or_else(|error| {
        panic!("cannot read {}: {error}: run scripts/setup.sh and build again", header.display())
    });
    let number = |name: &str| {
        let define = format!("#define TORCH_VERSION_{name} ");
        text.lines().find_map(|l| l.strip_prefix(&define)).map_or("?", str::trim).to_string()
    };
    format!("{}.{}.{}", number("MAJOR"), number("MINOR"), number("PATCH"))
}

/// The GNU build id of a 64-bit little-endian ELF file, as hex: the note `GNU` of type 3.
fn gnu_build_id(elf: &[u8]) -> Option<String> {
    let number = |at: usize, len: usize| -> Option<usize> {
        let mut bytes = [0u8; 8];
        bytes[..len].copy_from_slice(elf.get(at..at + len)?);
        usize::try_from(u64::from_le_bytes(bytes)).ok()
    };
    let (headers, size, count) = (number(0x20, 8)?, number(0x36, 2)?, number(0x38, 2)?);
    const PT_NOTE: usize = 4;
    for header in (0..count).map(|i| headers + i * size) {
        if number(header, 4)? != PT_NOTE {
            continue;
        }
        let (mut at, len) = (number(header + 8, 8)?, number(header + 32, 8)?);
        let end = at + len;
        while at + 12 <= end {
            let (name, desc, kind) = (number(at, 4)?, number(at + 4, 4)?, number(at + 8, 4)?);
            let text = at + 12 + name.next_multiple_of(4);
            if kind == 3 && elf.get(at + 12..at + 16)? == b"GNU\0" {
                let id = elf.get(text..text + desc)?;
                return Some(id.iter().map(|byte| format!("{byte:02x}")).collect());
            }
            at = text + desc.next_multiple_of(4);
        }
    }
    None
}
