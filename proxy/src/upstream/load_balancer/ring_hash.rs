//! Ring hash: Envoy's ketama ring over xxHash64, entry for entry.
//!
//! Pure: keys and weights in, an index out. The same keys give the same ring in Envoy, so a mesh of both
//! agrees on who serves a hash.

use super::xxhash64;

/// Hashes with the endpoint (an index into what the ring was built of) that each stands for, ascending.
#[derive(Debug)]
pub(super) struct Ring(Vec<(u64, u32)>);

impl Ring {
    /// A ring of `endpoints` (hash key and weight) with at least `minimum` and at most `maximum` entries, as
    /// far as whole numbers of entries an endpoint allow.
    pub(super) fn new(endpoints: &[(String, u32)], minimum: u64, maximum: u64) -> Self {
        let sum: f64 = endpoints.iter().map(|(_, weight)| f64::from(*weight)).sum();
        let smallest = endpoints.iter().map(|(_, weight)| f64::from(*weight) / sum);
        let smallest = smallest.fold(1.0_f64, f64::min);
        #[expect(
            clippy::cast_precision_loss,
            reason = "Envoy computes in doubles; sizes are below 2^53"
        )]
        let (minimum, maximum) = (minimum as f64, maximum as f64);
        // The least weighted endpoint gets a whole number of entries, unless that makes the ring too large.
        let scale = ((smallest * minimum).ceil() / smallest).min(maximum);
        let mut ring = Vec::new();
        let (mut have, mut wanted) = (0.0, 0.0);
        for (index, (key, weight)) in (0..).zip(endpoints) {
            wanted += scale * (f64::from(*weight) / sum);
            let mut i = 0;
            while have < wanted {
                ring.push((xxhash64(format!("{key}_{i}").as_bytes(), 0), index));
                i += 1;
                have += 1.0;
            }
        }
        ring.sort_unstable();
        Self(ring)
    }

    /// The endpoint of the first entry at or after `hash`, or the `attempt`th after that one.
    pub(super) fn choose(&self, hash: u64, attempt: usize) -> Option<usize> {
        let at = self.0.partition_point(|(entry, _)| *entry < hash) + attempt;
        let (_, index) = self.0.get(at.checked_rem(self.0.len())?)?;
        Some(*index as usize)
    }
}

#[cfg(test)]
mod tests {
    use super::super::EnvoysChoice;
    use super::*;

    fn keys(ports: std::ops::Range<u16>) -> Vec<(String, u32)> {
        ports.map(|port| (format!("127.0.0.1:{port}"), 1)).collect()
    }

    #[test]
    fn entries_are_xxhash64_of_address_and_number() {
        let ring = Ring::new(&keys(90..96), 12, 8_388_608);
        // Two an endpoint; the hashes were computed with the xxhash reference library.
        let expected: [(u64, u32); 12] = [
            (833_437_586_790_550_860, 4),
            (928_266_305_478_181_108, 2),
            (1_033_482_794_131_418_490, 0),
            (3_551_244_743_356_806_947, 5),
            (3_851_675_632_748_031_481, 3),
            (5_583_722_120_771_150_861, 1),
            (6_311_230_543_546_372_928, 1),
            (7_700_377_290_971_790_572, 3),
            (13_144_177_310_400_110_813, 5),
            (13_444_792_449_719_432_967, 2),
            (15_516_499_411_664_133_160, 4),
            (16_117_243_373_044_804_889, 0),
        ];
        assert_eq!(ring.0, expected);
        for (hash, index) in [
            (0, 4),
            (expected[0].0, 4),
            (expected[0].0 + 1, expected[1].1),
            (u64::MAX, 4),
        ] {
            assert_eq!(ring.choose(hash, 0), Some(index as usize), "{hash}");
        }
        assert_eq!(ring.choose(0, 1), Some(expected[1].1 as usize));
        assert_eq!(ring.choose(0, 12), ring.choose(0, 0));
    }

    #[test]
    fn sizes_follow_the_weights_and_the_bounds() {
        let counts = |weights: &[u32], minimum, maximum| {
            let endpoints: Vec<_> = weights.iter().map(|w| (format!("e{w}"), *w)).collect();
            let ring = Ring::new(&endpoints, minimum, maximum);
            (0..weights.len())
                .map(|i| ring.0.iter().filter(|(_, index)| *index as usize == i).count())
                .collect::<Vec<_>>()
        };
        assert_eq!(counts(&[1], 1024, 8_388_608), [1024]);
        assert_eq!(counts(&[1, 2], 1024, 8_388_608), [342, 684]);
        assert_eq!(counts(&[1, 1, 1], 1024, 8_388_608), [342, 342, 342]);
        // Too large: scaled down, with fractions given to whoever comes first.
        assert_eq!(counts(&[1, 1, 1, 1], 1024, 6), [2, 1, 2, 1]);
        assert_eq!(counts(&[], 1024, 8_388_608), Vec::<usize>::new());
        assert_eq!(Ring::new(&[], 1024, 8_388_608).choose(7, 0), None);
    }

    #[test]
    fn envoys_endpoint_is_chosen_for_each_key() {
        let by_default = [
            EnvoysChoice {
                weights: [1, 1, 1, 1, 1],
                first: "00440311202120440341",
                all: 0x72d7_637d_a3d0_e5d0,
            },
            EnvoysChoice {
                weights: [1, 2, 3, 5, 8],
                first: "33443330402324440344",
                all: 0x33fc_eef3_edbc_5eba,
            },
            EnvoysChoice {
                weights: [100, 1, 50, 7, 33],
                first: "00442000020020400243",
                all: 0x0f85_7a13_cbdc_3b4f,
            },
        ];
        let small = [
            EnvoysChoice {
                weights: [1, 1, 1, 1, 1],
                first: "14333310321202421230",
                all: 0xf71b_4d0e_b6f1_1e9b,
            },
            EnvoysChoice {
                weights: [1, 2, 3, 5, 8],
                first: "34343312321234421230",
                all: 0x13df_a220_afc3_b0a5,
            },
            EnvoysChoice {
                weights: [100, 1, 50, 7, 33],
                first: "04022000002024420220",
                all: 0xa799_9785_ed69_02c0,
            },
        ];
        for ((minimum, maximum), table) in [((1024, 8_388_608), by_default), ((64, 200), small)] {
            for envoys in table {
                let chooser = Ring::new(&envoys.keys(), minimum, maximum);
                envoys.assert(|hash| chooser.choose(hash, 0));
            }
        }
    }
}
