//! The statements whose value may be in a row.

/// The numbers of the statements that wrote a key.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Filled {
    /// The last statement that was answered.
    pub answered: u64,
    /// Statements whose outcome is unknown.
    pub unknown: Vec<u64>,
}

impl Filled {
    /// Whether the value of this statement may be there.
    pub fn allows(&self, statement: u64) -> bool {
        self.answered == statement || self.unknown.contains(&statement)
    }
}
