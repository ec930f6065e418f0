//! The gpu adapter.
