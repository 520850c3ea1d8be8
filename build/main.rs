//! Has the released program linked so that it takes little memory, as far as the linker and the loader at hand go along.

use std::env::{var, var_os};
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::{fs, io};

/// What a bridge executes, most executed first, by `list-functions`: names of C, and of Rust up to their hashes or with these.
const FUNCTIONS: &str = include_str!("functions.txt");

fn main() -> io::Result<()> {
    for file in ["build/main.rs", "build/functions.txt"] {
        println!("cargo::rerun-if-changed={file}");
    }
    let out = PathBuf::from(var_os("OUT_DIR").unwrap_or_default());
    let layout = out.join("layout.ld");
    fs::write(&layout, script())?;
    let arguments = [
        // The table of relocations is read whole when the program starts, and has 600 KB otherwise.
        "-Wl,-z,pack-relative-relocs".to_owned(),
        // What is executed lies on some 300 pages, and all over the program otherwise: Linux has 16 pages for each that is needed.
        format!("-Wl,-T,{}", layout.display()),
    ];
    let native = var("TARGET") == var("HOST");
    if native && var("PROFILE").as_deref() == Ok("release") {
        for argument in arguments.iter().filter(|argument| runs_with(argument, &out)) {
            println!("cargo::rustc-link-arg-bins={argument}");
        }
    }
    Ok(())
}

/// A linker script that puts these functions before all others. Linkers take it in addition to what they do anyway.
fn script() -> String {
    let mut script = "SECTIONS {\n  .text_executed : {\n".to_owned();
    for name in FUNCTIONS.lines() {
        // A section for each function, as Rust and `-ffunction-sections` have them.
        let _ = if name.starts_with("_ZN") {
            writeln!(script, "    *(.text.{name}*)")
        } else {
            writeln!(script, "    *(.text.{name} .text.{name}.*)")
        };
    }
    script + "  }\n} INSERT BEFORE .text;\n"
}

/// Whether a program that is linked with this argument can be made here, and starts.
fn runs_with(argument: &str, out: &Path) -> bool {
    let (source, program) = (out.join("trial.rs"), out.join("trial"));
    let mut rustc = Command::new(var_os("RUSTC").unwrap_or_else(|| "rustc".into()));
    rustc.args(var("CARGO_ENCODED_RUSTFLAGS").unwrap_or_default().split('\x1f').filter(|flag| !flag.is_empty()));
    if let Ok(linker) = var("RUSTC_LINKER") {
        rustc.arg(format!("-Clinker={linker}"));
    }
    rustc.arg(format!("-Clink-arg={argument}")).arg("-o").arg(&program).arg(&source);
    let made = fs::write(&source, "fn main() {}").and_then(|()| rustc.output());
    made.is_ok_and(|made| made.status.success()) && Command::new(&program).status().is_ok_and(|status| status.success())
}
