# Extends a file system to the end of the part of a file in which it lies.
#   FILE START LENGTH SECTOR MOUNT KIND [DEVICE]
# Lengths are in bytes. MOUNT is a directory for who must be mounted; whoever starts this sees to it that nobody else
# sees that. Exits with 0, or has said why not.
set -eu
exec 2>&1
file=$1 start=$2 length=$3 sector=$4 mount=$5 kind=$6

# It is seen as large as it is, however small it was a moment ago.
for _ in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20; do
    [ "$(stat -c %s "$file")" -lt $((start + length)) ] || break
    sleep 0.2
done

loop=$(losetup --find --show --offset "$start" --sizelimit "$length" --sector-size "$sector" "$file")
# From here on it goes with the last one who has it open, whatever ends that.
exec 9<>"$loop"
losetup --detach "$loop"

mounted() {
    mount -t "$1" -o "nosuid,nodev,noexec$2" "$loop" "$mount"
}

case $kind in
ext-check | ext-mend)
    code=0
    e2fsck -f -p "$loop" || code=$?
    if [ "$code" -gt 1 ] && [ "$kind" = ext-mend ]; then
        code=0
        e2fsck -f -y "$loop" || code=$?
    fi
    # 1: it has mended something.
    if [ "$code" -gt 1 ]; then
        echo "e2fsck -p cannot mend it: attach the volume and run e2fsck on it"
        exit 1
    fi
    ;;
ext)
    resize2fs "$loop"
    ;;
xfs)
    # Another with the same UUID may be mounted: disks are copied.
    mounted xfs ,nouuid
    xfs_growfs -d "$mount"
    umount "$mount"
    ;;
btrfs)
    mounted btrfs ""
    btrfs filesystem resize "$7:max" "$mount"
    umount "$mount"
    btrfs device scan --forget "$loop" || true
    ;;
ntfs)
    # Forced twice: neither asks nor minds the mark that Windows is to check the file system, which an earlier run has
    # left. It checks itself before, and changes nothing if it finds something wrong.
    ntfsresize -ff --no-progress-bar "$loop"
    ;;
esac
