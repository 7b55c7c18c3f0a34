//! The `maskdiff` binary: see [`maskdiff::cli`].

fn main() -> std::process::ExitCode {
    maskdiff::cli::main()
}
