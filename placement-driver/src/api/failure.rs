//! The answer of a handler that has no response.

use super::problem::ApiProblem;

/// The answer of a handler that has no response.
#[derive(Debug)]
pub(crate) enum ApiFailure {
    /// Answer with this problem.
    Problem(ApiProblem),
    /// Redirect to the leader.
    NeedsLeader,
}

impl<P: Into<ApiProblem>> From<P> for ApiFailure {
    fn from(problem: P) -> ApiFailure {
        let problem = problem.into();
        // This replica lost its leadership before it could propose: the client asks the new leader.
        if problem.is_no_leader() { ApiFailure::NeedsLeader } else { ApiFailure::Problem(problem) }
    }
}
