//! Every way in which a plug-in can fail, on request.

use serde::Deserialize;
use std::hint::black_box;

/// `{"fail":FAULT}`.
#[derive(Clone, Copy, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Fault {
    /// A panic, which the boundary catches.
    Panic,
    /// The process ends with code 3.
    Exit,
    /// The process aborts: SIGABRT.
    Abort,
    /// A write to where nothing is mapped: SIGSEGV.
    Segv,
    /// A callback that waits for ever.
    Hang,
    /// An endless loop.
    Spin,
    /// 64 MiB that nobody gives back; the instance lives on.
    Leak,
    /// A recursion without end: SIGABRT, after Rust's message.
    Overflow,
}

impl Fault {
    /// Lets it happen.
    pub(crate) fn happen(self) {
        match self {
            Self::Panic => panic!("a panic was asked for"),
            Self::Exit => std::process::exit(3),
            Self::Abort => std::process::abort(),
            // SAFETY: none; this is the fault that was asked for, and the process ends here.
            Self::Segv => unsafe { std::ptr::write_volatile(std::ptr::without_provenance_mut::<u8>(16), 0) },
            Self::Hang => hang(),
            Self::Spin => spin(),
            Self::Leak => drop(black_box(Box::leak(vec![1_u8; 64 << 20].into_boxed_slice()))),
            Self::Overflow => drop(black_box(deeper(0))),
        }
    }
}

/// Never comes back.
pub(crate) fn hang() -> ! {
    loop {
        std::thread::park();
    }
}

/// Never comes back, and is never idle.
fn spin() -> ! {
    loop {
        black_box(0);
    }
}

#[expect(unconditional_recursion, reason = "this is the fault that was asked for")]
fn deeper(depth: u64) -> u64 {
    let here = black_box([depth; 128]);
    black_box(deeper(here[0] + 1)) + 1
}
