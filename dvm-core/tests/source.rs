//! The sentences of the algorithm's source that state a property, each with a test.
//!
//! Source: C. Engelmann, S. L. Scott, G. A. Geist, "Distributed Peer-to-Peer Control in Harness", ORNL.

mod harness;
