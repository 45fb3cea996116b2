package main

const keyctl, bpf, setns = 219, 280, 268
