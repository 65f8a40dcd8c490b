//! The shared file: a line `FENCE INDEX WORD` for each effect. It is the resource that protects itself: under a lock, it
//! takes a line only if no higher fence was there.

use std::fs::File;
use std::io::{self, Read, Write};
use std::path::Path;

/// Appends a line, if the fence is not lower than the last one.
pub(crate) fn append(path: &Path, fence: u64, index: u64, word: &str) -> io::Result<bool> {
    let mut file = File::options().read(true).append(true).create(true).open(path)?;
    // It ends with the descriptor, whatever becomes of this process.
    file.lock()?;
    let mut text = String::new();
    file.read_to_string(&mut text)?;
    let highest = text.lines().last().and_then(|line| line.split(' ').next()?.parse().ok()).unwrap_or(0);
    if fence < highest {
        return Ok(false);
    }
    // One write: a line is whole or not there.
    file.write_all(format!("{fence} {index} {word}\n").as_bytes())?;
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lower_fence_is_refused() {
        let path = std::env::temp_dir().join(format!("ledger-{}", std::process::id()));
        for (fence, taken) in [(5, true), (5, true), (7, true), (6, false), (7, true)] {
            assert_eq!(append(&path, fence, 1, "word").expect("there is room"), taken, "{fence}");
        }
        let text = std::fs::read_to_string(&path).expect("it is there");
        std::fs::remove_file(&path).expect("it is ours");
        assert_eq!(text, "5 1 word\n5 1 word\n7 1 word\n7 1 word\n");
    }
}
