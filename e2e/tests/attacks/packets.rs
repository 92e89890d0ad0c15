//! From a pod to its neighbours: addresses that are not its own, and a network that somebody took apart.
