//! Loading and unloading leaves nothing behind. `cargo xtask soak` does it thousands of times and looks at memory, too.

use dvm_tests::soak::{SLACK, Soak};

/// Cycles after the warm-up: many more than what may come and go, so that one descriptor or thread a cycle is seen.
const CYCLES: usize = 60;

#[test]
fn loads_and_unloads_leave_no_descriptor_thread_or_process_behind() {
    const { assert!(CYCLES > 4 * SLACK) };
    let mut soak = Soak::start(3, "process");
    soak.cycle(10);
    let before = soak.gauges();
    soak.cycle(CYCLES);
    let _ = soak.gauges_as(&before);
}
