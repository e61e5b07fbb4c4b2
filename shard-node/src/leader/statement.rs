//! What every statement passes on the leader before it is executed: it is bound to its plan, and it
//! waits for the rate limiter.

use super::context::LeaderContext;
use super::plan_cache::{BoundPlan, PlanCache};
use super::postgres_session::check_value_size;
use super::rate_limiter::RateLimiter;
use evenkeel_protocol::shard::StatementRequest;
use evenkeel_protocol::{Failure, Value};
use std::sync::Arc;

/// See the module.
pub struct StatementIntake {
    context: Arc<LeaderContext>,
    plans: PlanCache,
    rate_limiter: Option<RateLimiter>,
}

impl StatementIntake {
    /// An intake of at most `capacity_per_s` statements per second.
    pub fn new(context: Arc<LeaderContext>, capacity_per_s: Option<f64>) -> StatementIntake {
        StatementIntake { context, plans: PlanCache::default(), rate_limiter: capacity_per_s.map(RateLimiter::new) }
    }

    /// Binds a statement to its plan and checks its parameters, before PostgreSQL has any work with
    /// it.
    pub fn bind(&self, request: &StatementRequest) -> Result<Arc<BoundPlan>, Failure> {
        self.context.check_open()?;
        let schema_version = self.context.shared.schema_version();
        let bound = self.plans.bind(request, &self.context.shared.state(), schema_version)?;
        request.params.iter().try_for_each(|value| check_value_size(long_bytes(value)))?;
        Ok(bound)
    }

    /// Waits until the rate limiter, if there is one, admits a statement.
    pub async fn limit_rate(&self) -> Result<(), Failure> {
        match &self.rate_limiter {
            Some(limiter) => limiter.acquire().await,
            None => Ok(()),
        }
    }
}

/// The memory that a waiting statement takes, in bytes.
pub fn weight(request: &StatementRequest) -> usize {
    let each = |value: &Value| std::mem::size_of::<Value>() + long_bytes(value);
    request.sql.len() + request.params.iter().map(each).sum::<usize>()
}

/// The memory that a value takes outside its [`Value`], in bytes.
fn long_bytes(value: &Value) -> usize {
    match value {
        Value::Text(text) => text.len(),
        Value::Bytes(bytes) => bytes.len(),
        _ => 0,
    }
}
