"""XMP files as other programs write them, none with a description."""

_PADDING = 80 * " "
_RDF = 'xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#"'
_DC = 'xmlns:dc="http://purl.org/dc/elements/1.1/"'

DARKTABLE = f"""<?xml version="1.0" encoding="UTF-8"?>
<x:xmpmeta xmlns:x="adobe:ns:meta/" x:xmptk="XMP Core 4.4.0-Exiv2">
 <rdf:RDF {_RDF}>
  <rdf:Description rdf:about=""
    xmlns:exif="http://ns.adobe.com/exif/1.0/"
    xmlns:xmp="http://ns.adobe.com/xap/1.0/"
    xmlns:xmpMM="http://ns.adobe.com/xap/1.0/mm/"
    {_DC}
    xmlns:lr="http://ns.adobe.com/lightroom/1.0/"
    xmlns:darktable="http://darktable.sf.net/"
   exif:DateTimeOriginal="2023:07:01 18:22:10.000"
   xmp:Rating="4"
   xmpMM:DerivedFrom="IMG_0001.jpg"
   darktable:import_timestamp="63823800000000000"
   darktable:xmp_version="5"
   darktable:history_end="2">
   <dc:subject>
    <rdf:Bag>
     <rdf:li>holiday</rdf:li>
    </rdf:Bag>
   </dc:subject>
   <lr:hierarchicalSubject>
    <rdf:Bag>
     <rdf:li>places|Köln &amp; Umgebung</rdf:li>
    </rdf:Bag>
   </lr:hierarchicalSubject>
   <darktable:masks_history>
    <rdf:Seq/>
   </darktable:masks_history>
   <darktable:history>
    <rdf:Seq>
     <rdf:li
      darktable:num="0"
      darktable:operation="exposure"
      darktable:enabled="1"
      darktable:modversion="6"
      darktable:params="00000000000080b90000003f00004842000080c000000000"
      darktable:multi_name=""
      darktable:blendop_params="gz11eJxjYGBgkGAAgRNODESDBnsIHll8ANNSGQM="/>
    </rdf:Seq>
   </darktable:history>
  </rdf:Description>
 </rdf:RDF>
</x:xmpmeta>
"""

# Lightroom and Camera Raw: a packet with padding, properties as attributes.
LIGHTROOM = f"""<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>
<x:xmpmeta xmlns:x="adobe:ns:meta/" x:xmptk="Adobe XMP Core 7.0-c000 1.000000, 0000/00/00">
 <rdf:RDF {_RDF}>
  <rdf:Description rdf:about=""
    xmlns:xmp="http://ns.adobe.com/xap/1.0/"
    xmlns:photoshop="http://ns.adobe.com/photoshop/1.0/"
    xmlns:crs="http://ns.adobe.com/camera-raw-settings/1.0/"
   xmp:Rating="3"
   xmp:Label="Rot"
   photoshop:SidecarForExtension="JPG"
   crs:Version="15.4"
   crs:Exposure2012="+0.35"
   crs:HasSettings="True">
   <crs:ToneCurvePV2012>
    <rdf:Seq>
     <rdf:li>0, 0</rdf:li>
     <rdf:li>255, 255</rdf:li>
    </rdf:Seq>
   </crs:ToneCurvePV2012>
  </rdf:Description>
 </rdf:RDF>
</x:xmpmeta>
{_PADDING}
{_PADDING}
<?xpacket end="w"?>"""

DIGIKAM = f"""<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>
<x:xmpmeta xmlns:x="adobe:ns:meta/" x:xmptk="XMP Core 4.4.0-Exiv2"> <rdf:RDF {_RDF}> \
<rdf:Description rdf:about="" xmlns:digiKam="http://www.digikam.org/ns/1.0/" {_DC} \
xmlns:lr="http://ns.adobe.com/lightroom/1.0/" digiKam:PickLabel="0"> <digiKam:TagsList> <rdf:Seq> \
<rdf:li>Leute/Anna</rdf:li> </rdf:Seq> </digiKam:TagsList> <lr:hierarchicalSubject> <rdf:Bag> \
<rdf:li>Leute|Anna</rdf:li> </rdf:Bag> </lr:hierarchicalSubject> <dc:description> <rdf:Alt> \
<rdf:li xml:lang="x-default"/> </rdf:Alt> </dc:description> </rdf:Description> </rdf:RDF> \
</x:xmpmeta> <?xpacket end="w"?>"""

# exiftool, which Immich uses: single quotes, a block for each namespace.
IMMICH = f"""<?xpacket begin='\ufeff' id='W5M0MpCehiHzreSzNTczkc9d'?>
<x:xmpmeta xmlns:x='adobe:ns:meta/' x:xmptk='Image::ExifTool 12.57'>
<rdf:RDF {_RDF.replace('"', "'")}>

 <rdf:Description rdf:about='uuid:faf5bdd5-ba3d-11da-ad31-d33d75182f1b'
  xmlns:digiKam='http://www.digikam.org/ns/1.0/'>
  <digiKam:TagsList>
   <rdf:Seq>
    <rdf:li>trips/2023</rdf:li>
   </rdf:Seq>
  </digiKam:TagsList>
 </rdf:Description>

 <rdf:Description rdf:about='uuid:faf5bdd5-ba3d-11da-ad31-d33d75182f1b'
  xmlns:xmp='http://ns.adobe.com/xap/1.0/'>
  <xmp:Rating>5</xmp:Rating>
 </rdf:Description>
</rdf:RDF>
</x:xmpmeta>
<?xpacket end='w'?>"""

CAPTURE_ONE = f"""<?xml version="1.0" encoding="UTF-8"?>
<x:xmpmeta xmlns:x="adobe:ns:meta/" x:xmptk="XMP Core 5.5.0">
   <rdf:RDF {_RDF}>
      <!-- written by a test -->
      <rdf:Description rdf:about="" xmlns:xmp="http://ns.adobe.com/xap/1.0/" xmp:Rating="2" \
xmp:Label="a &gt; b"   />
   </rdf:RDF>
</x:xmpmeta>
""".replace("\n", "\r\n")

PROGRAMS = {
    "darktable": DARKTABLE.encode(),
    "lightroom": LIGHTROOM.encode(),
    "digikam": DIGIKAM.encode(),
    "immich": IMMICH.encode(),
    "captureone": CAPTURE_ONE.encode(),
    "bom": CAPTURE_ONE.encode("utf-8-sig"),
    "utf-16": CAPTURE_ONE.replace("UTF-8", "UTF-16").encode("utf-16"),
    "utf-16-be": b"\xfe\xff" + LIGHTROOM.encode("utf-16-be"),
    "latin-1": DARKTABLE.replace("UTF-8", "ISO-8859-1").encode("latin-1"),
    "no-block": f"<rdf:RDF {_RDF}/>".encode(),
    "default-namespace": (
        f'<RDF {_RDF.replace("xmlns:rdf", "xmlns")}>\n <Description about=""/>\n</RDF>'
    ).encode(),
}


def with_properties(properties: str, attributes: str = "") -> bytes:
    """Return an XMP file with these properties, such as "<dc:title>...</dc:title>"."""
    return (
        f'<x:xmpmeta xmlns:x="adobe:ns:meta/">\n <rdf:RDF {_RDF}>\n  <rdf:Description rdf:about="" '
        f'{_DC} xmlns:tiff="http://ns.adobe.com/tiff/1.0/" '
        'xmlns:photoshop="http://ns.adobe.com/photoshop/1.0/" '
        f'xmlns:i="http://iptc.org/std/Iptc4xmpCore/1.0/xmlns/" {attributes}>\n   '
        f"{properties}\n  </rdf:Description>\n </rdf:RDF>\n</x:xmpmeta>\n"
    ).encode()


def languages(name: str, **texts: str) -> str:
    """Return a property with texts in several languages; default stands for x-default."""
    items = "".join(
        f'<rdf:li xml:lang="{"x-default" if code == "default" else code.replace("_", "-")}">{text}'
        "</rdf:li>"
        for code, text in texts.items()
    )
    return f"<{name}><rdf:Alt>{items}</rdf:Alt></{name}>"
