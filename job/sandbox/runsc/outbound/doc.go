// Package outbound is the network of one container, as a process of its own
// beside it: a TCP/IP stack in user space that ends each connection of the
// container and dials out in its place, where the policy allows.
//
// It hides gVisor's netstack, the link to the container, the policy, the name
// server that the container sees, and the count of bytes. It needs no privilege
// and changes nothing on the machine: no interface, route, namespace or rule of
// a firewall. What the container sends are packets on one end of a socket pair;
// what leaves the machine are ordinary connections of this process.
//
// Package sandbox starts it and counts on Arg, LinkFD, the flags of Main and
// Report; the container's addresses are in Link.
package outbound
