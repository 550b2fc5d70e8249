//! Loops that the compiler turns into vectors by itself, once for each instruction set.

/// Makes a list of variants out of one `#[inline(always)]` body that the compiler vectorizes by itself: the body
/// compiled for AVX-512, for AVX2 and for any CPU. All give the same bits, because Rust neither reorders nor
/// contracts float operations.
///
/// `autovec!(LIST, fn(name: &[f32], other: &mut [f32]) = body)`
macro_rules! autovec {
    ($vis:vis $list:ident, fn($($arg:ident: $ty:ty),* $(,)?) $(-> $ret:ty)? = $body:path) => {
        $vis static $list: &[$crate::variant::Variant<fn($($ty),*) $(-> $ret)?>] = {
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx2,fma")]
            fn avx2($($arg: $ty),*) $(-> $ret)? {
                $body($($arg),*)
            }
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx2,fma,avx512f,avx512bw,avx512dq,avx512vl")]
            fn avx512($($arg: $ty),*) $(-> $ret)? {
                $body($($arg),*)
            }
            fn scalar($($arg: $ty),*) $(-> $ret)? {
                $body($($arg),*)
            }
            &[
                #[cfg(target_arch = "x86_64")]
                $crate::variant::Variant::new(
                    "avx512",
                    $crate::variant::Isa::Avx512,
                    $crate::variant::has_avx512,
                    // SAFETY: `Variant::get` hands this out only when `has_avx512` has found the features.
                    |$($arg),*| unsafe { avx512($($arg),*) },
                ),
                #[cfg(target_arch = "x86_64")]
                $crate::variant::Variant::new(
                    "avx2",
                    $crate::variant::Isa::Avx2,
                    $crate::variant::has_avx2,
                    // SAFETY: `Variant::get` hands this out only when `has_avx2` has found the features.
                    |$($arg),*| unsafe { avx2($($arg),*) },
                ),
                $crate::variant::Variant::scalar(scalar),
            ]
        };
    };
}
pub(crate) use autovec;
