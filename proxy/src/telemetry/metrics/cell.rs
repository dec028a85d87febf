//! The numbers themselves: one thread's share of a counter, gauge or histogram.
//!
//! A handle cannot leave the thread that resolved it, so each share has one writer: counting is a load
//! and a store, without a locked instruction, and a scrape sums the shares. Shares of one thread lie
//! together; those of two threads never share a cache line.

use std::cell::RefCell;
use std::marker::PhantomData;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// Envoy's default histogram buckets, milliseconds; `+Inf` comes after the last.
pub const BUCKETS: [f64; 19] = [
    0.5, 1.0, 5.0, 10.0, 25.0, 50.0, 100.0, 250.0, 500.0, 1e3, 2.5e3, 5e3, 1e4, 3e4, 6e4, 3e5, 6e5, 1.8e6,
    3.6e6,
];

/// What a gauge holds before anybody set it; as a value it is 0.
const UNSET: u64 = i64::MIN.cast_unsigned();

/// Shares of one thread, side by side in cache lines of their own.
#[derive(Debug)]
#[repr(align(128))]
struct Chunk([AtomicU64; CELLS]);

const CELLS: usize = 64;

/// One share.
#[derive(Clone, Debug)]
pub(in crate::telemetry) struct Cell {
    chunk: Arc<Chunk>,
    index: usize,
}

thread_local! {
    /// The chunk being filled, and how much of it is taken.
    static FILLING: RefCell<Option<(Arc<Chunk>, usize)>> = const { RefCell::new(None) };
}

impl Cell {
    /// A fresh share for this thread.
    fn new(value: u64) -> Self {
        FILLING.with_borrow_mut(|filling| {
            let (chunk, taken) = filling
                .take_if(|(_, taken)| *taken < CELLS)
                .unwrap_or_else(|| (Arc::new(Chunk([const { AtomicU64::new(0) }; CELLS])), 0));
            *filling = Some((Arc::clone(&chunk), taken + 1));
            let cell = Self { chunk, index: taken };
            cell.at().store(value, Relaxed);
            cell
        })
    }

    pub(in crate::telemetry) fn counter() -> Self {
        Self::new(0)
    }

    pub(in crate::telemetry) fn gauge() -> Self {
        Self::new(UNSET)
    }

    fn at(&self) -> &AtomicU64 {
        &self.chunk.0[self.index % CELLS]
    }

    /// The count.
    pub(in crate::telemetry) fn count(&self) -> u64 {
        self.at().load(Relaxed)
    }

    /// The gauge, or `None` when it was never set.
    pub(in crate::telemetry) fn level(&self) -> Option<i64> {
        let bits = self.at().load(Relaxed);
        (bits != UNSET).then_some(bits.cast_signed())
    }
}

/// Keeps a handle on the thread that resolved it.
type OneThread = PhantomData<*const ()>;

/// This thread's handle of a counter.
#[derive(Clone, Debug)]
pub struct Counter {
    cell: Cell,
    stays: OneThread,
}

/// This thread's handle of a gauge. The gauge is the sum over the threads that use it.
#[derive(Clone, Debug)]
pub struct Gauge {
    cell: Cell,
    stays: OneThread,
}

/// This thread's handle of a histogram.
#[derive(Clone, Debug)]
pub struct Histogram {
    shares: Arc<Buckets>,
    stays: OneThread,
}

impl Counter {
    pub(in crate::telemetry) fn of(cell: Cell) -> Self {
        Self {
            cell,
            stays: PhantomData,
        }
    }

    /// Counts `by` more.
    pub fn increment(&self, by: u64) {
        let at = self.cell.at();
        at.store(at.load(Relaxed).wrapping_add(by), Relaxed);
    }
}

impl Gauge {
    pub(in crate::telemetry) fn of(cell: Cell) -> Self {
        Self {
            cell,
            stays: PhantomData,
        }
    }

    /// Up by `by`.
    pub fn add(&self, by: i64) {
        let now = self.cell.level().unwrap_or(0);
        self.store(now.wrapping_add(by));
    }

    /// Down by `by`.
    pub fn sub(&self, by: i64) {
        self.add(by.wrapping_neg());
    }

    /// Makes this thread's share `value`: for gauges that one thread alone writes.
    pub fn set(&self, value: u64) {
        // Beyond 2^63, as of a hash, the bits are kept and printed as unsigned again.
        self.store(value.cast_signed());
    }

    fn store(&self, value: i64) {
        self.cell.at().store(value.cast_unsigned(), Relaxed);
    }
}

impl Histogram {
    pub(super) fn of(shares: Arc<Buckets>) -> Self {
        Self {
            shares,
            stays: PhantomData,
        }
    }

    /// Takes a sample; what it measures, mostly milliseconds, is in the histogram's name.
    pub fn record(&self, value: f64) {
        let shares = &self.shares;
        let count = &shares.counts[bucket(value)];
        count.store(count.load(Relaxed).wrapping_add(1), Relaxed);
        let micros = micros(value);
        let sum = &shares.sum;
        sum.store(sum.load(Relaxed).wrapping_add(micros), Relaxed);
        if micros < shares.least.load(Relaxed) {
            shares.least.store(micros, Relaxed);
        }
        if micros > shares.most.load(Relaxed) {
            shares.most.store(micros, Relaxed);
        }
    }
}

/// One thread's share of a histogram. Sums are in thousandths, so that samples below 1 add up.
#[derive(Debug)]
#[repr(align(128))]
pub(super) struct Buckets {
    counts: [AtomicU64; BUCKETS.len() + 1],
    sum: AtomicU64,
    least: AtomicU64,
    most: AtomicU64,
}

impl Default for Buckets {
    fn default() -> Self {
        Self {
            counts: [const { AtomicU64::new(0) }; BUCKETS.len() + 1],
            sum: AtomicU64::new(0),
            least: AtomicU64::new(u64::MAX),
            most: AtomicU64::new(0),
        }
    }
}

impl Buckets {
    /// A sample from any thread.
    pub(super) fn record_shared(&self, value: f64) {
        self.counts[bucket(value)].fetch_add(1, Relaxed);
        let micros = micros(value);
        self.sum.fetch_add(micros, Relaxed);
        self.least.fetch_min(micros, Relaxed);
        self.most.fetch_max(micros, Relaxed);
    }
}

fn bucket(value: f64) -> usize {
    BUCKETS
        .iter()
        .position(|bound| value <= *bound)
        .unwrap_or(BUCKETS.len())
}

fn micros(value: f64) -> u64 {
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "negative samples count as 0, and what no u64 holds as its greatest"
    )]
    let micros = (value.max(0.0) * 1000.0) as u64;
    micros
}

/// A histogram, summed over its threads.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Distribution {
    /// Samples in each of [`BUCKETS`] (not cumulative), then those above the last.
    pub counts: [u64; BUCKETS.len() + 1],
    /// The sum of all samples.
    pub sum: f64,
    /// The least and the greatest sample, if there is any.
    pub range: Option<(f64, f64)>,
}

impl Distribution {
    pub(super) fn sum<'a>(shares: impl Iterator<Item = &'a Buckets>) -> Self {
        let mut total = Self::default();
        let (mut sum, mut least, mut most) = (0_u64, u64::MAX, 0_u64);
        for share in shares {
            for (into, count) in total.counts.iter_mut().zip(&share.counts) {
                *into += count.load(Relaxed);
            }
            sum = sum.wrapping_add(share.sum.load(Relaxed));
            least = least.min(share.least.load(Relaxed));
            most = most.max(share.most.load(Relaxed));
        }
        total.sum = thousandth(sum);
        total.range = (least <= most).then(|| (thousandth(least), thousandth(most)));
        total
    }

    /// What came since `earlier`; its range is not known.
    pub(super) fn since(&self, earlier: Option<&Self>) -> Self {
        let mut since = self.clone();
        if let Some(earlier) = earlier {
            for (count, before) in since.counts.iter_mut().zip(&earlier.counts) {
                *count = count.saturating_sub(*before);
            }
            since.sum -= earlier.sum;
            since.range = None;
        }
        since
    }

    /// How many samples there are.
    pub fn count(&self) -> u64 {
        self.counts.iter().sum()
    }

    /// Below which value the share `quantile` (0 to 1) of the samples lies, as well as the buckets
    /// tell: within one, samples are taken to lie evenly. `None` without samples.
    pub fn quantile(&self, quantile: f64) -> Option<f64> {
        let (least, most) = self.range?;
        #[expect(clippy::cast_precision_loss, reason = "a rank among samples")]
        let rank = quantile.clamp(0.0, 1.0) * self.count() as f64;
        let mut below = 0.0;
        for (index, count) in self.counts.iter().enumerate().filter(|(_, count)| **count > 0) {
            #[expect(clippy::cast_precision_loss, reason = "a rank among samples")]
            let inside = *count as f64;
            if below + inside >= rank {
                let lower = index.checked_sub(1).map_or(0.0, |below| BUCKETS[below]);
                let (lower, upper) = (
                    lower.max(least),
                    BUCKETS.get(index).copied().unwrap_or(most).min(most),
                );
                let value = lower + (upper - lower) * ((rank - below) / inside).clamp(0.0, 1.0);
                // No finer than samples are kept.
                return Some((value * 1000.0).round() / 1000.0);
            }
            below += inside;
        }
        Some(most)
    }
}

fn thousandth(value: u64) -> f64 {
    #[expect(clippy::cast_precision_loss, reason = "a figure in a text format")]
    let value = value as f64 / 1000.0;
    value
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_lie_side_by_side_within_a_thread_only() {
        let (a, b) = (Cell::counter(), Cell::counter());
        let other = std::thread::spawn(Cell::counter).join().unwrap();
        assert!(!Arc::ptr_eq(&a.chunk, &other.chunk));
        // Two in a row share a chunk unless the first filled one.
        assert!(Arc::ptr_eq(&a.chunk, &b.chunk) || b.index == 0);
        let many: Vec<Cell> = (0..200).map(|_| Cell::counter()).collect();
        for (value, cell) in (1..).zip(&many) {
            Counter::of(cell.clone()).increment(value);
        }
        assert!((1..).zip(&many).all(|(value, cell)| cell.count() == value));
    }

    #[test]
    fn a_gauge_knows_whether_it_was_set() {
        let cell = Cell::gauge();
        assert_eq!(cell.level(), None);
        let gauge = Gauge::of(cell.clone());
        gauge.add(3);
        gauge.sub(3);
        assert_eq!(cell.level(), Some(0));
        gauge.set(u64::MAX - 1);
        assert_eq!(cell.level().map(i64::cast_unsigned), Some(u64::MAX - 1));
    }

    #[test]
    fn quantiles_stay_within_what_was_seen() {
        let shares = Arc::new(Buckets::default());
        let histogram = Histogram::of(Arc::clone(&shares));
        let total = || Distribution::sum(std::iter::once(&*shares));
        assert_eq!(total().quantile(0.5), None);
        histogram.record(3.0);
        assert_eq!(total().quantile(0.0), Some(3.0));
        assert_eq!(total().quantile(1.0), Some(3.0));
        for value in [0.2, 7.0, 7.5, 8.0, 4e6, -1.0] {
            histogram.record(value);
        }
        let total = total();
        assert_eq!(total.count(), 7);
        assert_eq!(total.quantile(1.0), Some(4e6));
        assert_eq!(total.quantile(0.0), Some(0.0));
        let median = total.quantile(0.5).unwrap();
        assert!((5.0..=10.0).contains(&median), "{median}");
        assert!((total.sum - 4_000_025.7).abs() < 0.01, "{}", total.sum);
    }
}
