//! What a bench is, and the one function whose instructions count.

use std::error::Error;

/// What a bench cannot do, it says.
pub(crate) type Outcome = Result<(), Box<dyn Error>>;

/// Rounds before anything counts: caches, pools, lazily made tables and the allocator's arenas fill in them.
pub(crate) const WARM_UP: u32 = 100;

/// One thing that is hot.
#[derive(Debug)]
pub(crate) struct Bench {
    /// Its name, by which its number is kept.
    pub(crate) name: &'static str,
    /// How often it is done: the count is divided by it.
    pub(crate) times: u32,
    /// Prepares it, warms it up and does it as often as it is told, within [`counted`].
    pub(crate) run: fn(u32) -> Outcome,
}

/// Valgrind counts what happens in here, by this function's name. It is neither generic nor inlined, so that
/// there is one symbol to find.
#[inline(never)]
pub(crate) fn counted(work: &mut dyn FnMut()) {
    work();
}

/// Does `work` a few times, then `times` times with its instructions counted.
pub(crate) fn repeat(times: u32, mut work: impl FnMut()) {
    for _ in 0..WARM_UP {
        work();
    }
    counted(&mut || {
        for _ in 0..times {
            work();
        }
    });
}
