package main

const keyctl, bpf, setns = 250, 321, 308
