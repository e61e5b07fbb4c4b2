//! R24: after a move the two copies were compared at the fence; none may have differed. And every operator ends.

use evenkeel_placement_driver::state::{PlacementState, Status};

/// What is wrong with the operators, in words.
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
