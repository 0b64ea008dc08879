//! What is dirty and what to read ahead: plain functions.
