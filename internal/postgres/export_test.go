//go:build unix

package postgres

import "context"

// Parts of the download, with what is pinned made an argument.
var (
	Unpack        = unpack
	NpmrcRegistry = npmrcRegistry
	Registry      = registry
	Choose        = choose
	Pinned        = downloads
)

func (a archive) String() string { return a.path + " " + a.integrity }

// WithoutKernel makes this process do without the kernel's parent-death signal.
func WithoutKernel() { kernelGuards = false }

// Fetch is the download of an archive that the test pins.
func Fetch(ctx context.Context, registry, path, integrity, target string) error {
	return fetch(ctx, registry, archive{path, integrity}, target, func(string) {})
}
