//! Where a command is carried out that takes long.

/// Carries work out without keeping the caller's thread from others. What is short is done in place: that costs nothing.
pub trait Aside {
    /// Does `work` before it returns.
    fn run<T>(&self, work: impl FnOnce() -> T) -> T;
}

/// In place, whatever it is.
#[derive(Clone, Copy, Debug, Default)]
pub struct InPlace;

impl Aside for InPlace {
    fn run<T>(&self, work: impl FnOnce() -> T) -> T {
        work()
    }
}
