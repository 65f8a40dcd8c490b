//! Which members are meant: a comma list of names, `k[0-3]`, `tag=value`, `rank:2`, or an id's first six or more.

use crate::exit::usage;
use dvm_plugin_api::local::{Failure, FailureCode, MemberDoc};

/// Digits of an id that may stand for it.
pub(crate) const ID_MIN: usize = 6;

/// Names of the members that `selectors` mean, each once, in the order given.
pub(crate) fn select(selectors: &[String], members: &[MemberDoc]) -> Result<Vec<String>, Failure> {
    let mut chosen: Vec<String> = Vec::new();
    for part in selectors.iter().flat_map(|selector| split(selector)) {
        let found = select_one(part, members)?;
        if found.is_empty() {
            let names: Vec<_> = members.iter().map(|member| member.name.as_str()).collect();
            return Err(Failure::new(FailureCode::NotFound, format!("no member `{part}`"))
                .hint(format!("members are {}", names.join(", "))));
        }
        for name in found {
            if !chosen.contains(&name) {
                chosen.push(name);
            }
        }
    }
    Ok(chosen)
}

/// Names that `selectors` spell out, whether or not there are such members.
pub(crate) fn names(selectors: &[String]) -> Result<Vec<String>, Failure> {
    let parts = selectors.iter().flat_map(|selector| split(selector));
    Ok(parts.map(expand).collect::<Result<Vec<_>, _>>()?.concat())
}

/// The terms that `selectors` spell out for a plug-in's place: names and `tag=value`.
pub(crate) fn terms(selectors: &[String]) -> Result<Vec<String>, Failure> {
    let mut terms = Vec::new();
    for part in selectors.iter().flat_map(|selector| split(selector)) {
        match part.split_once('=') {
            Some(("", _)) => return Err(usage(format!("`{part}`: a tag has a name"))),
            Some(_) => terms.push(part.to_owned()),
            None if part.starts_with("rank:") => {
                return Err(usage(format!("`{part}`: ranks change, a plug-in's place does not"))
                    .hint("give the member's name, or a tag"));
            }
            None => terms.extend(expand(part)?),
        }
    }
    Ok(terms)
}

fn select_one(part: &str, members: &[MemberDoc]) -> Result<Vec<String>, Failure> {
    let those = |wanted: &dyn Fn(&MemberDoc) -> bool| {
        members.iter().filter(|member| wanted(member)).map(|member| member.name.clone()).collect::<Vec<_>>()
    };
    if let Some(rank) = part.strip_prefix("rank:") {
        let rank: usize = rank.parse().map_err(|_| usage(format!("`{part}`: a rank is a number")))?;
        return Ok(those(&|member| member.rank == rank));
    }
    if let Some((tag, value)) = part.split_once('=') {
        return Ok(those(&|member| member.tags.get(tag).is_some_and(|found| found == value)));
    }
    let names = expand(part)?;
    let by_name = those(&|member| names.contains(&member.name));
    if by_name.is_empty() && part.len() >= ID_MIN {
        let by_id = those(&|member| member.id.starts_with(part));
        if by_id.len() > 1 {
            return Err(usage(format!("`{part}` begins the ids of {}; give more of it", by_id.join(", "))));
        }
        return Ok(by_id);
    }
    Ok(by_name)
}

/// At commas outside of brackets.
fn split(selector: &str) -> Vec<&str> {
    let mut depth = 0_usize;
    selector
        .split(move |c: char| {
            match c {
                '[' => depth += 1,
                ']' => depth = depth.saturating_sub(1),
                _ => {}
            }
            c == ',' && depth == 0
        })
        .filter(|part| !part.is_empty())
        .collect()
}

/// The names that `k[0-3,7]` stands for. Zeros in front are part of a name: `n[08-10]` is n08, n09, n10.
fn expand(part: &str) -> Result<Vec<String>, Failure> {
    const MANY: usize = 65_536;
    let Some((head, rest)) = part.split_once('[') else { return Ok(vec![part.into()]) };
    let wrong = || usage(format!("`{part}`: expected a range like k[0-3]"));
    let (ranges, tail) = rest.split_once(']').ok_or_else(wrong)?;
    let mut names = Vec::new();
    for range in ranges.split(',') {
        let (low, high) = range.split_once('-').unwrap_or((range, range));
        let width = low.len();
        let (low, high): (usize, usize) =
            (low.parse().map_err(|_| wrong())?, high.parse().map_err(|_| wrong())?);
        if low > high || high - low > MANY {
            return Err(wrong());
        }
        names.extend((low..=high).map(|number| format!("{head}{number:0width$}{tail}")));
    }
    Ok(names)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn member(rank: usize, tag: &str) -> MemberDoc {
        MemberDoc {
            id: format!("{rank}abcdef"),
            name: format!("k{rank}"),
            rank,
            host: "here".into(),
            address: String::new(),
            pid: 0,
            state: "normal".into(),
            tags: [("zone".to_owned(), tag.to_owned())].into(),
            index: 0,
            log: String::new(),
            last_heard_ms: None,
            version: String::new(),
        }
    }

    fn check(selector: &str, expected: Option<&[&str]>) {
        let members: Vec<_> = (0..4).map(|rank| member(rank, if rank < 2 { "a" } else { "b" })).collect();
        let chosen = select(&[selector.into()], &members).ok();
        assert_eq!(
            chosen.as_deref().map(|names| names.iter().map(String::as_str).collect::<Vec<_>>()),
            expected.map(<[_]>::to_vec),
            "{selector}"
        );
    }

    #[test]
    fn selectors() {
        check("k1", Some(&["k1"]));
        check("k3,k1,k3", Some(&["k3", "k1"]));
        check("k[0-1,3]", Some(&["k0", "k1", "k3"]));
        check("k[2-3],k0", Some(&["k2", "k3", "k0"]));
        check("zone=b", Some(&["k2", "k3"]));
        check("rank:2", Some(&["k2"]));
        check("3abcde", Some(&["k3"]));
        for bad in ["k9", "3abc", "zone=c", "rank:x", "k[3-1]", "k[0-", "rank:9"] {
            check(bad, None);
        }
    }

    #[test]
    fn zeros_in_front_are_part_of_a_name() {
        assert_eq!(expand("n[08-10]").ok(), Some(vec!["n08".into(), "n09".into(), "n10".into()]));
    }
}
