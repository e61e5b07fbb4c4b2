//! The parts of the transport that outlive a configuration: the listener and the session numbers.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use evenkeel_host::Listener;

use crate::command::Commands;
use crate::config::GroupConfig;
use crate::error::StartError;
use crate::membership::Membership;
use crate::wire::Tag;

use super::config::TransportConfig;
use super::connections::Transport;

/// Starts the transport of each configuration on the same listener.
pub(crate) struct TransportFactory {
    listener: Arc<Listener>,
    inputs: Commands,
    tokio: tokio::runtime::Handle,
    store_id: u64,
    next_session: Arc<AtomicU64>,
}

impl TransportFactory {
    /// Binds the listener. Must be called within a tokio runtime.
    ///
    /// # Errors
    /// There is no runtime, or the address cannot be bound.
    pub(crate) fn new(config: &GroupConfig, store_id: u64, inputs: Commands) -> Result<TransportFactory, StartError> {
        let tokio = tokio::runtime::Handle::try_current().map_err(|e| StartError::Config(e.to_string()))?;
        let listener = evenkeel_host::bind(config.listen)
            .map_err(|source| StartError::Io { what: format!("listening on {}", config.listen), source })?;
        let next_session = Arc::new(AtomicU64::new(1));
        Ok(TransportFactory { listener: Arc::new(listener), inputs, tokio, store_id, next_session })
    }

    /// Starts the transport of the configuration `membership`.
    pub(crate) fn connect(&self, config: &GroupConfig, membership: &Membership) -> Transport {
        let transport = TransportConfig {
            tag: Tag { group: config.group, configuration: membership.configuration },
            me: config.me.0,
            store_id: self.store_id,
            membership: membership.clone(),
            timing: config.timing.clone(),
            limits: config.limits.clone(),
        };
        let _within = self.tokio.enter();
        Transport::start(transport, self.listener.clone(), self.inputs.clone(), self.next_session.clone())
    }
}
