#!/usr/bin/env bash
# Runs the tests of crates/kernels on an emulated CPU with AVX-512, for machines that have none.
#
#     tools/test_avx512.sh [TEST-ARGUMENTS...]        # as root on Debian: installs the emulator (Bochs), a kernel, and what boots it
#
# A Skylake-X (AVX-512 F, BW, DQ, VL, without VNNI) boots a Debian kernel whose only program is the tests. It executes about twenty
# million instructions a second, so property tests try six cases each, and what works through a billion of multiplications in
# software is left out. Takes half an hour; the last line says `test result: ok`.
set -euo pipefail
cd "$(dirname "$0")/.."

sudo=""
[ "$(id -u)" = 0 ] || sudo=sudo
$sudo env DEBIAN_FRONTEND=noninteractive apt-get --quiet --quiet install --yes --no-install-recommends \
    bochs bochsbios vgabios bochs-term busybox-static cpio isolinux syslinux-common xorriso

tests=$(cargo test -p midtread-kernels --no-run 2>&1 | grep --only-matching 'target/debug/deps/midtread_kernels-[0-9a-f]*')
folder=$(mktemp --directory)
trap 'rm -rf "$folder"' EXIT
mkdir -p "$folder"/system/{bin,proc,dev,tmp} "$folder"/iso/boot/isolinux

# The kernel.
package=$(apt-cache depends linux-image-cloud-amd64 | awk '/Depends: linux-image/ { print $2 }')
(cd "$folder" && apt-get --quiet --quiet download "$package" && dpkg --extract "$package"_*.deb kernel)
cp "$folder"/kernel/boot/vmlinuz-* "$folder"/iso/boot/vmlinuz

# Its only program.
cp /bin/busybox "$folder"/system/bin/
strip -o "$folder"/system/bin/tests "$tests"
for library in $(ldd "$tests" | grep --only-matching '/lib[^ ]*'); do
    install -D "$library" "$folder/system$library"
done
skip="--skip functions_are_within --skip blocks_of_k --skip large_products"
cat > "$folder"/system/init <<INIT
#!/bin/busybox sh
/bin/busybox mount -t proc proc /proc
/bin/busybox mount -t devtmpfs dev /dev
cd /tmp
export PROPTEST_CASES=6 HOME=/tmp
/bin/busybox grep -o -w 'avx512[a-z_0-9]*' /proc/cpuinfo | /bin/busybox sort -u | /bin/busybox tr '\n' ' '
/bin/tests --test-threads 1 $skip $* 2>&1
# What the serial line still holds is lost with the power.
/bin/busybox sleep 3
/bin/busybox poweroff -f
INIT
chmod +x "$folder"/system/init
(cd "$folder"/system && find . | cpio --create --format newc --quiet | gzip -1 > ../iso/boot/initrd)

# What boots it.
cp /usr/lib/ISOLINUX/isolinux.bin /usr/lib/syslinux/modules/bios/ldlinux.c32 "$folder"/iso/boot/isolinux/
cat > "$folder"/iso/boot/isolinux/isolinux.cfg <<'BOOT'
DEFAULT tests
TIMEOUT 1
LABEL tests
  KERNEL /boot/vmlinuz
  INITRD /boot/initrd
  APPEND console=ttyS0 quiet mitigations=off nokaslr random.trust_cpu=on lpj=1000000 nowatchdog
BOOT
xorriso -as mkisofs -quiet -o "$folder"/tests.iso -b boot/isolinux/isolinux.bin -c boot/isolinux/boot.cat \
    -no-emul-boot -boot-load-size 4 -boot-info-table "$folder"/iso

cat > "$folder"/bochsrc <<BOCHS
megs: 512
cpu: model=corei7_skylake_x, count=1, ips=200000000, reset_on_triple_fault=0, ignore_bad_msrs=1
romimage: file=/usr/share/bochs/BIOS-bochs-latest
vgaromimage: file=/usr/share/vgabios/vgabios.bin
ata0-master: type=cdrom, path=$folder/tests.iso, status=inserted
boot: cdrom
com1: enabled=1, mode=file, dev=$folder/serial
display_library: term
log: $folder/log
panic: action=fatal
BOCHS
echo c > "$folder"/commands
touch "$folder"/serial
tail --follow "$folder"/serial &
# The display wants a terminal.
TERM=xterm script --quiet --return --command "bochs -q -f $folder/bochsrc -rc $folder/commands" /dev/null > /dev/null < /dev/null &
emulator=$!
until grep --quiet 'test result' "$folder"/serial || ! kill -0 "$emulator" 2>/dev/null; do sleep 5; done
sleep 1
kill "$emulator" %1 2>/dev/null || true
grep --quiet 'test result: ok' "$folder"/serial
