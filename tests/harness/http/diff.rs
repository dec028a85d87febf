//! The difference of two outcomes, line by line.

/// The lines that only one side has: `-` before those of `theirs`, `+` before those of `ours`, in order.
pub fn lines(theirs: &[String], ours: &[String]) -> Vec<String> {
    let common = longest(theirs, ours);
    let (mut a, mut b) = (0, 0);
    let mut out = Vec::new();
    for (i, j) in common.into_iter().chain([(theirs.len(), ours.len())]) {
        let only = |side: &[String], from: usize, to: usize, mark: &str| -> Vec<String> {
            let part = side.get(from..to).unwrap_or_default();
            part.iter().map(|line| format!("{mark}{line}")).collect()
        };
        out.extend(only(theirs, a, i, "-"));
        out.extend(only(ours, b, j, "+"));
        (a, b) = (i + 1, j + 1);
    }
    out
}

/// The places of the longest common subsequence.
fn longest(a: &[String], b: &[String]) -> Vec<(usize, usize)> {
    let width = b.len() + 1;
    let mut best = vec![0_usize; (a.len() + 1) * width];
    for i in (0..a.len()).rev() {
        for j in (0..b.len()).rev() {
            best[i * width + j] = if a[i] == b[j] {
                best[(i + 1) * width + j + 1] + 1
            } else {
                best[(i + 1) * width + j].max(best[i * width + j + 1])
            };
        }
    }
    let (mut i, mut j, mut pairs) = (0, 0, Vec::new());
    while i < a.len() && j < b.len() {
        if a[i] == b[j] {
            pairs.push((i, j));
            (i, j) = (i + 1, j + 1);
        } else if best[(i + 1) * width + j] >= best[i * width + j + 1] {
            i += 1;
        } else {
            j += 1;
        }
    }
    pairs
}

#[cfg(test)]
mod tests {
    use super::lines;

    fn text(words: &str) -> Vec<String> {
        words.split(' ').map(str::to_owned).collect()
    }

    #[test]
    fn what_one_side_lacks_is_shown_in_its_place() {
        assert_eq!(lines(&text("a b c"), &text("a x c d")), ["-b", "+x", "+d"]);
        assert!(lines(&text("a b"), &text("a b")).is_empty());
        assert_eq!(lines(&text("a b"), &text("b a")), ["-a", "+a"]);
    }
}
