#!/usr/bin/env bash
# Compiles the engine's run path and examples/small for devices: a Cortex-M with a float unit (thumbv7em-none-eabihf) and
# WebAssembly with SIMD (wasm32-unknown-unknown).
#
#     tools/build_devices.sh [FOLDER]
#
# With rustup it is two lines instead:
#     rustup target add thumbv7em-none-eabihf wasm32-unknown-unknown
#     cargo build -p midtread-small --lib --profile small --target thumbv7em-none-eabihf
#
# This does without: a compiler and the library's source from Debian packages (rustc-web, rust-web-src), of which `core`,
# `alloc` and `compiler_builtins` are compiled first. Only the library of examples/small is built: what links a program
# (a linker script, an allocator, a start) is the device's.
set -euo pipefail
cd "$(dirname "$0")/.."
work=$(realpath "${1:-target/devices}")
mkdir -p "$work/packages"

if [ ! -x "$work/root/usr/bin/rustc" ]; then
    (cd "$work/packages" && apt-get download rustc-web libstd-rust-web-dev rust-web-src libllvm22 \
        "$(apt-cache search --names-only '^libstd-rust-web-[0-9]' | sort -V | tail -n 1 | cut -d' ' -f1)")
    for package in "$work"/packages/*.deb; do dpkg -x "$package" "$work/root"; done
fi
root=$work/root/usr
export LD_LIBRARY_PATH=$root/lib/x86_64-linux-gnu:$root/lib:$root/lib/llvm-22/lib
# `core` uses what only the compiler's own library may use.
export RUSTC_BOOTSTRAP=1
library=$(echo "$root"/src/rustc-*/library)

for target in thumbv7em-none-eabihf wasm32-unknown-unknown; do
    out=$work/sysroot/lib/rustlib/$target/lib
    compile() {
        "$root/bin/rustc" --target "$target" --edition=2024 --crate-type rlib -C opt-level=s -C panic=abort \
            -Z force-unstable-if-unmarked --cap-lints allow --sysroot "$work/sysroot" -L "$out" --out-dir "$out" "$@"
    }
    if [ ! -e "$out/liballoc.rlib" ]; then
        mkdir -p "$out"
        compile --crate-name core "$library/core/src/lib.rs"
        compile --crate-name compiler_builtins --cfg 'feature="compiler-builtins"' --cfg 'feature="mem"' \
            --cfg 'feature="unmangled-names"' "$library/compiler-builtins/compiler-builtins/src/lib.rs"
        compile --crate-name alloc "$library/alloc/src/lib.rs"
    fi
    features=""
    if [ "$target" = wasm32-unknown-unknown ]; then features="-C target-feature=+simd128"; fi
    RUSTC=$root/bin/rustc RUSTFLAGS="--sysroot $work/sysroot $features" CARGO_TARGET_DIR=$work/target \
        cargo build --package midtread-small --lib --profile small --target "$target"
    ls -l "$work/target/$target/small/"*.rlib
done
