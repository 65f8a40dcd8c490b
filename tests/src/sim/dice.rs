//! Small helpers on the one generator.

use dvm_core::Prng;

/// A number in `low..=high`.
pub(crate) fn between(prng: &mut Prng, low: u64, high: u64) -> u64 {
    low + prng.below(high.saturating_sub(low) + 1)
}

/// One of `list`, if there is any.
pub(crate) fn pick<T: Copy>(prng: &mut Prng, list: &[T]) -> Option<T> {
    list.get(prng.below(list.len() as u64) as usize).copied()
}

/// One of a non-empty list.
pub(crate) fn one_of<T: Copy>(prng: &mut Prng, list: &[T]) -> T {
    pick(prng, list).expect("the list is a non-empty literal")
}

/// True `permille` times in a thousand; draws nothing for 0, so that an option that is off changes no other draw.
pub(crate) fn permille(prng: &mut Prng, permille: u64) -> bool {
    permille > 0 && prng.chance(permille, 1_000)
}

/// A generator of its own for each purpose: a draw more in one leaves the others as they were.
pub(crate) fn stream(seed: u64, purpose: u64) -> Prng {
    let mut prng = Prng::new(seed ^ purpose.wrapping_mul(0x9e37_79b9_7f4a_7c15));
    prng.next_u64();
    prng
}
