//! The ring as characters.

/// Members in the order of the ring, the last linked to the first; one of them may be dead.
///
/// ```text
/// k0 ──▶ k1 ──▶ k2
///  ▲             │
///  └─────────────┘
/// ```
pub(super) fn ring(names: &[&str], dead: Option<&str>) -> Vec<String> {
    let is_dead = |name: &str| dead == Some(name);
    let mut line = String::new();
    for (number, name) in names.iter().enumerate() {
        if number > 0 {
            let broken = is_dead(name) || is_dead(names[number - 1]);
            line.push_str(if broken { " ─✗─ " } else { " ──▶ " });
        }
        if is_dead(name) {
            line.push_str(&format!("({name})"));
        } else {
            line.push_str(name);
        }
    }
    if names.len() < 2 {
        return vec![line];
    }
    let width = line.chars().count();
    let inner = width.saturating_sub(4);
    vec![line, format!(" ▲{}│ ", " ".repeat(inner)), format!(" └{}┘ ", "─".repeat(inner))]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pictures() {
        assert_eq!(ring(&["k0"], None), ["k0"]);
        assert_eq!(
            ring(&["k0", "k1", "k2"], Some("k1")),
            ["k0 ─✗─ (k1) ─✗─ k2", " ▲              │ ", " └──────────────┘ "]
        );
    }
}
