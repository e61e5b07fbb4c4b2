//! R24: every move compares the two copies at the fence, and no copies differ. Every operator ends.

use evenkeel_placement_driver::state::{PlacementState, Status};

/// Violations, in words.
pub fn check(state: &PlacementState) -> Vec<String> {
    let mut wrong = Vec::new();
    for operator in state.operators.values() {
        if operator.status == Status::Differs {
            wrong.push(format!("the copies of operator {} differ: {:?}", operator.id, operator.work));
        } else if !operator.status.is_over() {
            wrong.push(format!("operator {} does not end: {:?} at {:?}", operator.id, operator.work, operator.step));
        }
    }
    wrong
}
