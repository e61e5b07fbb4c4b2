//! The macros of scenarios.

/// Ends a scenario with an error unless the condition holds.
#[macro_export]
macro_rules! ensure {
    ($condition:expr, $($message:tt)+) => {
        if !$condition {
            return Err($crate::ScenarioFailure::new(format!($($message)+)));
        }
    };
}

/// Scenarios by their names.
#[macro_export]
macro_rules! scenarios {
    ($($name:ident),* $(,)?) => {
        &[$($crate::Scenario { name: stringify!($name), run: |world| Box::pin($name(world)) }),*]
    };
}
