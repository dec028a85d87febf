//! How connections are spread over the priorities of a cluster: health, overprovisioning, panic.
//!
//! Pure, in whole percent with Envoy's roundings (its docs: "Priority levels", "Panic threshold").

/// One priority as far as the spreading asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Health {
    /// Endpoints that are healthy and not ejected.
    pub usable: usize,
    /// All endpoints.
    pub total: usize,
    /// Percent, such as 140: by how much the health is overrated before the next priority gets a share.
    pub overprovisioning_factor: u32,
}

/// What one priority gets.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Load {
    /// Percent of all connections; those of all priorities add up to 100.
    pub percent: u32,
    /// Whether every endpoint is used there, health notwithstanding.
    pub panic: bool,
}

/// The load of each priority, the first one preferred. Below `panic_threshold` percent of healthy endpoints
/// a priority panics, unless the others make up for it; 0 never panics.
pub fn spread(levels: &[Health], panic_threshold: u8) -> Vec<Load> {
    let availability: Vec<u32> = levels.iter().map(Health::availability).collect();
    let sum = availability.iter().sum::<u32>().min(100);
    let mut loads: Vec<Load> = levels
        .iter()
        .map(|level| Load {
            percent: 0,
            panic: sum < 100 && level.is_below(panic_threshold),
        })
        .collect();
    if !loads.is_empty() && loads.iter().all(|load| load.panic) {
        share_by(&mut loads, levels, |level| level.total);
    } else {
        let mut left = 100;
        for (load, availability) in loads.iter_mut().zip(&availability) {
            let share = (availability * 100).checked_div(sum).unwrap_or_default();
            load.percent = left.min(share);
            left -= load.percent;
        }
        // Nothing is available and nothing panics: somebody has to have the load all the same.
        give_rest(&mut loads, left, |at| sum == 0 || availability[at] > 0);
    }
    loads
}

/// Shares 100 % in proportion to `size`: in a total panic health says nothing any more.
fn share_by(loads: &mut [Load], levels: &[Health], size: impl Fn(&Health) -> usize) {
    let sum: u64 = levels.iter().map(|level| size(level) as u64).sum();
    let mut left = 100;
    for (load, level) in loads.iter_mut().zip(levels) {
        // At most 100, so it fits.
        load.percent = u32::try_from(100 * size(level) as u64 / sum.max(1)).unwrap_or(100);
        left -= load.percent;
    }
    give_rest(loads, left, |at| sum == 0 || size(&levels[at]) > 0);
}

/// What rounding left goes to the first priority that may have it.
fn give_rest(loads: &mut [Load], rest: u32, may: impl Fn(usize) -> bool) {
    if let Some(first) = (0..loads.len()).find(|at| may(*at)) {
        loads[first].percent += rest;
    }
}

impl Health {
    /// Percent of healthy endpoints, overrated by the factor, at most 100.
    fn availability(&self) -> u32 {
        if self.total == 0 {
            return 0;
        }
        let overrated = u64::from(self.overprovisioning_factor) * self.usable as u64 / self.total as u64;
        u32::try_from(overrated.min(100)).unwrap_or(100)
    }

    fn is_below(&self, threshold: u8) -> bool {
        let percent = if self.total == 0 {
            0.0
        } else {
            #[expect(clippy::cast_precision_loss, reason = "Envoy compares as doubles too")]
            let percent = 100.0 * self.usable as f64 / self.total as f64;
            percent
        };
        percent < f64::from(threshold)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn percents(levels: &[(usize, usize)], factor: u32, threshold: u8) -> Vec<(u32, bool)> {
        let levels: Vec<Health> = levels
            .iter()
            .map(|&(usable, total)| Health {
                usable,
                total,
                overprovisioning_factor: factor,
            })
            .collect();
        spread(&levels, threshold)
            .into_iter()
            .map(|load| (load.percent, load.panic))
            .collect()
    }

    #[test]
    fn the_tables_of_envoys_documentation() {
        // "Priority levels", two priorities of 100 endpoints each, factor 140.
        for (healthy, expected) in [
            ([100, 100], [100, 0]),
            ([72, 72], [100, 0]),
            ([71, 71], [99, 1]),
            ([50, 50], [70, 30]),
            ([25, 100], [35, 65]),
            ([0, 100], [0, 100]),
        ] {
            let levels = healthy.map(|usable| (usable, 100));
            let loads: Vec<u32> = percents(&levels, 140, 0).into_iter().map(|(p, _)| p).collect();
            assert_eq!(loads, expected, "{healthy:?}");
        }
        // Three priorities; below 100 % in all they are normalised, and rounding favours the first.
        for (healthy, expected) in [
            ([100, 100, 100], [100, 0, 0]),
            ([72, 72, 100], [100, 0, 0]),
            ([71, 71, 100], [99, 1, 0]),
            ([50, 50, 100], [70, 30, 0]),
            ([50, 0, 50], [70, 0, 30]),
            ([25, 25, 100], [35, 35, 30]),
            ([25, 25, 0], [50, 50, 0]),
            ([20, 20, 10], [40, 40, 20]),
            ([5, 5, 10], [25, 25, 50]),
            ([3, 5, 5], [24, 38, 38]),
        ] {
            let levels = healthy.map(|usable| (usable, 100));
            let loads: Vec<u32> = percents(&levels, 140, 0).into_iter().map(|(p, _)| p).collect();
            assert_eq!(loads, expected, "{healthy:?}");
        }
    }

    #[test]
    fn panic_is_of_a_priority_unless_the_others_make_up_for_it() {
        // "Panic threshold": 100 % availability in all means no panic.
        assert_eq!(
            percents(&[(1, 100), (100, 100)], 140, 50),
            [(1, false), (99, false)]
        );
        // Below that, the priority under the threshold panics alone.
        assert_eq!(
            percents(&[(60, 100), (5, 100)], 100, 50),
            [(93, false), (7, true)]
        );
        // All below: the load follows the sizes.
        assert_eq!(percents(&[(1, 10), (1, 30)], 140, 50), [(25, true), (75, true)]);
        assert_eq!(percents(&[(0, 1)], 140, 50), [(100, true)]);
        // 0 never panics; somebody has to have the load all the same.
        assert_eq!(percents(&[(0, 1), (0, 1)], 140, 0), [(100, false), (0, false)]);
        assert_eq!(percents(&[(0, 0)], 140, 50), [(100, true)]);
        assert_eq!(percents(&[], 140, 50), []);
    }

    #[test]
    fn an_overprovisioning_of_consuls_failover_uses_a_priority_to_its_last_endpoint() {
        assert_eq!(
            percents(&[(1, 100), (100, 100)], 100_000, 0),
            [(100, false), (0, false)]
        );
    }

    #[test]
    fn loads_always_add_up() {
        for a in 0..=7 {
            for b in 0..=5 {
                for c in 0..=3 {
                    for threshold in [0, 50, 100] {
                        let loads = percents(&[(a, 7), (b, 5), (c, 3)], 140, threshold);
                        let sum: u32 = loads.iter().map(|(percent, _)| percent).sum();
                        assert_eq!(sum, 100, "{a} {b} {c} {threshold}: {loads:?}");
                    }
                }
            }
        }
    }
}
