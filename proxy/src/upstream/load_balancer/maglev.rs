//! Maglev: Envoy's consistent hash table (the paper's listing 1, with weights), entry for entry.
//!
//! Pure: keys and weights in, an index out.

use super::xxhash64;

/// A table of endpoints (indices into what it was built of).
#[derive(Debug)]
pub(super) struct Maglev(Vec<u32>);

/// An endpoint while the table is filled.
struct Filling {
    index: u32,
    offset: u64,
    skip: u64,
    weight: f64,
    target: f64,
    next: u64,
}

impl Maglev {
    /// A table of `size` entries, a prime, over `endpoints` (hash key and weight).
    pub(super) fn new(endpoints: &[(String, u32)], size: u64) -> Self {
        let Ok(length) = usize::try_from(size) else {
            return Self(Vec::new());
        };
        if endpoints.is_empty() || length < 2 {
            return Self(Vec::new());
        }
        // Envoy compares shares of 1, with their rounding.
        let sum: f64 = endpoints.iter().map(|(_, weight)| f64::from(*weight)).sum();
        let largest = endpoints.iter().map(|(_, weight)| f64::from(*weight) / sum);
        let largest = largest.fold(0.0_f64, f64::max);
        let mut sorted: Vec<(u32, &(String, u32))> = (0..).zip(endpoints).collect();
        // The order in which endpoints take entries decides the table: by key, as in Envoy.
        sorted.sort_by(|(_, a), (_, b)| a.0.cmp(&b.0));
        let mut filling: Vec<Filling> = sorted
            .into_iter()
            .map(|(index, (key, weight))| Filling {
                index,
                offset: xxhash64(key.as_bytes(), 0) % size,
                skip: xxhash64(key.as_bytes(), 1) % (size - 1) + 1,
                weight: f64::from(*weight) / sum,
                target: 0.0,
                next: 0,
            })
            .collect();
        let mut table = vec![u32::MAX; length];
        let mut left = length;
        let mut round = 0.0;
        while left > 0 {
            round += 1.0;
            for endpoint in &mut filling {
                // The heaviest takes an entry every round, one of half its weight every other.
                if left == 0 || round * endpoint.weight < endpoint.target {
                    continue;
                }
                endpoint.target += largest;
                let at = endpoint.take(&table, size);
                table[at] = endpoint.index;
                left -= 1;
            }
        }
        Self(table)
    }

    /// The endpoint for `hash`, or for the hash that Envoy tries instead at a further `attempt`.
    pub(super) fn choose(&self, hash: u64, attempt: usize) -> Option<usize> {
        let hash = match attempt as u64 {
            0 => hash,
            attempt => hash ^ (u64::MAX - attempt + 1),
        };
        let at = hash.checked_rem(self.0.len() as u64)?;
        Some(*self.0.get(usize::try_from(at).ok()?)? as usize)
    }
}

impl Filling {
    /// The next entry of its permutation that nobody has.
    fn take(&mut self, table: &[u32], size: u64) -> usize {
        for _ in 0..size {
            let at = self.offset.wrapping_add(self.skip.wrapping_mul(self.next)) % size;
            self.next += 1;
            let at = usize::try_from(at).unwrap_or_default();
            if table[at] == u32::MAX {
                return at;
            }
        }
        // Only a size that is no prime has permutations with gaps; whoever asks has seen a free entry.
        table
            .iter()
            .position(|entry| *entry == u32::MAX)
            .unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::super::EnvoysChoice;
    use super::*;

    fn keys(weights: &[u32]) -> Vec<(String, u32)> {
        (90..)
            .zip(weights)
            .map(|(port, w)| (format!("127.0.0.1:{port}"), *w))
            .collect()
    }

    #[test]
    fn a_small_table_is_as_the_algorithm_says() {
        // Computed by an independent program with the xxhash reference library.
        assert_eq!(Maglev::new(&keys(&[1; 6]), 7).0, [2, 4, 0, 1, 5, 0, 3]);
        assert_eq!(
            Maglev::new(&keys(&[1, 2]), 17).0,
            [1, 0, 0, 1, 0, 1, 1, 0, 1, 1, 1, 1, 1, 0, 1, 0, 1]
        );
    }

    #[test]
    fn shares_follow_the_weights_and_change_little() {
        let share = |table: &Maglev, index| table.0.iter().filter(|i| **i == index).count();
        let table = Maglev::new(&keys(&[1, 2, 1]), 65_537);
        assert!((share(&table, 1).abs_diff(32_768)) < 4, "{}", share(&table, 1));
        let without = Maglev::new(&keys(&[1, 2]), 65_537);
        let moved = table
            .0
            .iter()
            .zip(&without.0)
            .filter(|(a, b)| **a != 2 && a != b)
            .count();
        assert!(
            moved < 65_537 / 8,
            "{moved} entries of endpoints that stayed moved"
        );
    }

    #[test]
    fn nothing_to_choose_from() {
        assert_eq!(Maglev::new(&[], 65_537).choose(1, 0), None);
        assert_eq!(Maglev::new(&keys(&[1]), 65_537).choose(u64::MAX, 3), Some(0));
    }

    #[test]
    fn envoys_endpoint_is_chosen_for_each_key() {
        let by_default = [
            EnvoysChoice {
                weights: [1, 1, 1, 1, 1],
                first: "40323121404010220130",
                all: 0x6b1b_4aa1_9bc5_b216,
            },
            EnvoysChoice {
                weights: [1, 2, 3, 5, 8],
                first: "44323124444013224334",
                all: 0x0a14_e09f_7126_bacf,
            },
            EnvoysChoice {
                weights: [100, 1, 50, 7, 33],
                first: "40300020004000220040",
                all: 0xb97c_f240_7e9b_6588,
            },
        ];
        let small = [
            EnvoysChoice {
                weights: [1, 1, 1, 1, 1],
                first: "10100431411030140211",
                all: 0xe23d_15b9_e626_99b7,
            },
            EnvoysChoice {
                weights: [1, 2, 3, 5, 8],
                first: "14440431414434424214",
                all: 0xdbe2_a3c6_3a93_20ad,
            },
            EnvoysChoice {
                weights: [100, 1, 50, 7, 33],
                first: "40000420440040200212",
                all: 0xcce2_079b_e29a_223b,
            },
        ];
        for (size, table) in [(65_537, by_default), (251, small)] {
            for envoys in table {
                let chooser = Maglev::new(&envoys.keys(), size);
                envoys.assert(|hash| chooser.choose(hash, 0));
            }
        }
    }
}
