//go:build !linux

package content

func (f osFile) writeVec(bufs [][]byte, off int64) error { return f.writeEach(bufs, off) }

func (f osFile) writeback(int64, int64) {}
