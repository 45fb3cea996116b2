package gpu

import (
	"fmt"
	"time"
)

// Xid are the driver's numbers for errors of a card.
type xid uint64

// xidMeaning words the numbers that are met in practice.
var xidMeaning = map[xid]string{
	8:   "the card stopped processing",
	13:  "a program's exception on the card",
	31:  "a program touched memory that is not its own",
	32:  "the card's command stream was corrupted",
	38:  "the driver's firmware failed",
	43:  "a program's work was stopped after its own error",
	45:  "a program's work was cleaned up early",
	46:  "the card stopped processing",
	48:  "two bits of the card's memory flipped",
	56:  "the display engine failed",
	61:  "the card's microcontroller halted",
	62:  "the card's microcontroller halted",
	63:  "broken memory was marked for replacement",
	64:  "broken memory could not be marked for replacement",
	68:  "the video decoder failed on a program's data",
	69:  "a program's exception in the graphics engine",
	74:  "the NVLink failed",
	79:  "the card has fallen off the bus",
	92:  "one bit of memory flips too often",
	94:  "a memory error that was contained to one program",
	95:  "a memory error that was not contained",
	109: "a program's work timed out on the card",
	119: "the card's own processor does not answer the driver",
	120: "the card's own processor failed",
	121: "the link between the chips failed",
	122: "the card's SPI bus failed",
	137: "a program's access over NVLink failed",
	140: "an ECC error that could not be recovered",
	143: "the card did not come up after a reset",
	154: "the card needs a reset",
}

// ofProgram are the errors that programs cause: the card is well after them.
var ofProgram = map[xid]bool{13: true, 31: true, 43: true, 45: true, 68: true, 69: true, 109: true, 137: true}

func (x xid) String() string {
	if m := xidMeaning[x]; m != "" {
		return fmt.Sprintf("Xid %d, %s", uint64(x), m)
	}
	return fmt.Sprintf("Xid %d", uint64(x))
}

// quietAfterProgram is how long a card is not let after an error that a program
// caused; after any other it is not let until the node is started again.
const quietAfterProgram = time.Minute

// trouble is what an error at a time means for the card now.
func (x xid) trouble(at, now time.Time) Trouble {
	switch {
	case x == 0:
		return Trouble{}
	case !ofProgram[x]:
		return Trouble{Kind: KindXid, Ends: true, Text: fmt.Sprintf("the driver reported %s, at %s", x, at.UTC().Format("15:04:05"))}
	case now.Sub(at) < quietAfterProgram:
		return Trouble{Kind: KindXid, Text: fmt.Sprintf("the driver reported %s, at %s", x, at.UTC().Format("15:04:05"))}
	}
	return Trouble{}
}
