package main

// watchSize does nothing: Windows does not signal a terminal's new size.
func watchSize(int, chan<- [2]int) (stop func()) { return func() {} }
